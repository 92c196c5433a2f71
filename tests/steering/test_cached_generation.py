"""Steered text does not depend on whether keys and values are kept between steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.models import PositionEdit, load_model
from saelab.sae import SAE
from saelab.steering import (
    Clamp,
    Direction,
    Push,
    PushAlong,
    Scale,
    Splice,
    ablate,
    intervene,
    steer,
)
from tests.tiny_models import random_tokens, tiny_gemma2, tiny_gpt2, tiny_llama

LENGTH, NEW = 6, 7
EARLY, LATE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
POSITIONS = {
    "all but the first": None,
    "all": slice(None),
    "last": slice(-1, None),
    "last two": slice(-2, None),
    "all but the last": slice(0, -1),
    "every other": slice(None, None, 2),
    "the prompt only": slice(0, LENGTH),
    "generated only": slice(LENGTH, None),
    "mask": torch.arange(LENGTH) % 2 == 0,
    "mask of each row": torch.arange(2 * LENGTH).reshape(2, LENGTH) % 3 == 0,
}
MAKERS = {"gpt2": tiny_gpt2, "llama": tiny_llama}


@pytest.fixture(scope="module", params=MAKERS)
def model(request):
    model: Any = load_model(MAKERS[request.param](), name=request.param, device="cpu")
    model._end_token_ids = frozenset()  # text that ends early says less
    return model


@pytest.fixture(scope="module")
def prompt():
    return random_tokens(2, LENGTH, d_vocab=250, seed=4)


def dictionary(model, hook=EARLY, activation=None, **settings):
    return SAE(model.d_model, 24, activation or TopK(3), hook=hook, seed=1, **settings)


def uncached(model, prompt, n=NEW):
    """Token by token, the whole row every time."""
    rows = prompt
    for _ in range(n):
        rows = torch.cat([rows, model.logits(rows)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return rows


@contextmanager
def counted(model) -> Iterator[list[int]]:
    """Positions the model runs in each pass."""
    seen: list[int] = []
    inner = model._forward

    def forward(tokens, *args, **settings):
        seen.append(tokens.shape[1])
        return inner(tokens, *args, **settings)

    model._forward = forward
    try:
        yield seen
    finally:
        del model._forward


@pytest.mark.parametrize("name", POSITIONS)
def test_cached_text_is_the_uncached_text(model, prompt, name):
    sae = dictionary(model)
    with steer(model, sae, {5: 4.0, 7: -3.0}, positions=POSITIONS[name]):
        with counted(model) as seen:
            cached = model.generate(prompt, NEW)
        assert torch.equal(cached, uncached(model, prompt))
    assert seen[0] == LENGTH
    assert max(seen[1:]) <= 3, "the cache must be used for this test to say anything"
    assert not torch.equal(cached, model.generate(prompt, NEW)) or name == "generated only"


def test_every_kind_of_edit_may_use_the_cache(model, prompt):
    one, two = dictionary(model), dictionary(model, LATE, AbsTopK(3))
    rows = torch.randn(4, model.d_model, generator=torch.Generator().manual_seed(0))
    leading = Direction(vector=rows, hook=LATE, name="leading")
    edits = [
        Push(one, {3: 1.5}),
        Clamp(one, {1: 2.0}),
        Scale(two, {2: -1.0, 3: 0.0}),
        PushAlong(leading, 0.7),
        Splice(two),
    ]
    with intervene(model, edits):
        with counted(model) as seen:
            cached = model.generate(prompt, NEW)
        assert torch.equal(cached, uncached(model, prompt))
    assert seen == [LENGTH] + [1] * (NEW - 1)
    assert not torch.equal(cached, model.generate(prompt, NEW))


def test_a_transcoder_that_reads_and_writes_elsewhere_may_too(model, prompt):
    sae = SAE(
        model.d_model, 24, TopK(6), hook="blocks.0.hook_resid_pre", hook_out="blocks.1.hook_mlp_out"
    )
    with ablate(model, sae, range(24)):
        with counted(model) as seen:
            cached = model.generate(prompt, NEW)
        assert torch.equal(cached, uncached(model, prompt))
    assert seen == [LENGTH] + [1] * (NEW - 1)
    assert not torch.equal(cached, model.generate(prompt, NEW))


def test_an_edit_that_is_a_plain_function_sees_whole_rows_and_still_works(model, prompt):
    seen = []

    def push_the_last(x):
        seen.append(x.shape[1])
        return x + torch.arange(x.shape[1]).reshape(1, -1, 1) / 10

    with model.editing({EARLY: push_the_last}), steer(model, dictionary(model), {5: 4.0}):
        text = model.generate(prompt, 4)
        assert seen == [LENGTH, LENGTH + 1, LENGTH + 2, LENGTH + 3]
        assert torch.equal(text, uncached(model, prompt, 4))


@pytest.mark.parametrize("window", [64, 4])
@pytest.mark.parametrize("name", ["all but the first", "last", "last two"])
def test_a_sliding_window_that_has_moved_on_is_run_again(prompt, window, name):
    """Its cache cannot be cut back once it is full; the scores must not notice."""
    inner = tiny_gemma2()
    inner.config.sliding_window = window
    for layer in inner.model.layers:
        layer.self_attn.sliding_window = window if layer.self_attn.sliding_window else None
    model: Any = load_model(inner, name="gemma2", device="cpu")
    with steer(model, dictionary(model), {5: 4.0}, positions=POSITIONS[name]):
        cache, rows = None, prompt
        for _ in range(5):
            model._start = 0
            whole = model.logits(rows)[:, -1]
            logits, cache = model._step(rows, cache)
            assert torch.allclose(logits[:, -1], whole, atol=1e-4)
            rows = torch.cat([rows, random_tokens(2, 1, d_vocab=250, seed=rows.shape[1])], dim=1)
    model._start = 0


@pytest.mark.parametrize("name", POSITIONS)
def test_how_far_two_lengths_are_edited_alike_is_what_the_edit_says(name):
    """`alike` against the definition: the first position at which the edits of both differ."""
    model: Any = load_model(tiny_gpt2(), name="gpt2", device="cpu")
    direction = Direction(vector=torch.ones(model.d_model), hook=EARLY, name="ones")
    with intervene(model, [PushAlong(direction, 1.0)], positions=POSITIONS[name]):
        (edit,) = model._edits
    assert model._edits == []
    assert isinstance(edit, PositionEdit)

    def edited(first, length):
        x = torch.zeros(2, length - first, model.d_model)
        return edit.from_position(x, first)[..., 0] > 0

    for before in range(1, 9):
        after = before + 1
        assert torch.equal(
            edit(torch.zeros(2, before, model.d_model))[..., 0] > 0, edited(0, before)
        )
        same = (edited(0, before) == edited(0, after)[:, :before]).all(0)
        first = before if bool(same.all()) else int((~same).nonzero()[0])
        assert edit.alike(before, after) == first
        assert torch.equal(edited(first, after), edited(0, after)[:, first:])
