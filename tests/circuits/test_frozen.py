"""The frozen map computes what the model computes, exactly, and leaves the model alone."""

from typing import Any

import pytest
import torch

from saelab.circuits import FrozenMap, LocalReplacement
from saelab.circuits.freezing import INTERFACE
from saelab.errors import ConfigError, ModelError, ShapeError
from saelab.models import load_model
from tests import tiny_models
from tests.circuits.circuit_cases import (
    MAKERS,
    PROMPT,
    autoencoder,
    cross_layer,
    every_readout,
    model_of,
    residual,
    transcoder,
    transcoders,
)

ALL = pytest.mark.parametrize("name", MAKERS)


@ALL
def test_every_sum_closes_in_double_precision(name: str) -> None:
    replacement = LocalReplacement(model_of(name), transcoders(), PROMPT)
    assert len(replacement.latents) > 20
    assert residual(replacement, every_readout(replacement)) < 1e-10


@ALL
def test_every_sum_closes_in_single_precision(name: str) -> None:
    model = model_of(name, torch.float32)
    replacement = LocalReplacement(model, transcoders(torch.float32), PROMPT)
    assert residual(replacement, every_readout(replacement)) < 1e-4


@ALL
def test_no_class_of_terms_could_be_left_out(name: str) -> None:
    replacement = LocalReplacement(model_of(name), transcoders(), PROMPT)
    parts = replacement.decompose(every_readout(replacement))
    learned = parts.positions.abs().sum()
    assert (learned > 0) == (name == "gpt2")
    for part in (parts.latents, parts.errors, parts.tokens, parts.decoder_biases, parts.bias):
        assert float(part.abs().amax()) > 0.01


@pytest.mark.parametrize("selection", ["layer", "joint"])
def test_sums_close_with_latents_that_write_to_many_layers(selection: str) -> None:
    for name in ("gpt2", "gemma2"):
        replacement = LocalReplacement(model_of(name), cross_layer(selection), PROMPT)
        assert residual(replacement, every_readout(replacement)) < 1e-10


@ALL
def test_sums_close_with_autoencoders_of_the_stream_and_of_attention(name: str) -> None:
    model = model_of(name)
    width = model.hook_point("blocks.1.attn.hook_z").width
    assert width is not None
    saes = [
        autoencoder("blocks.0.hook_resid_post"),
        autoencoder("blocks.1.attn.hook_z", width),
        autoencoder("blocks.2.hook_attn_out"),
        transcoder(1, skip=True),
    ]
    replacement = LocalReplacement(model, saes, PROMPT)
    assert {int(site) for site in replacement.latents.site} == {0, 1, 2, 3}
    assert residual(replacement, every_readout(replacement)) < 1e-10


def test_a_transcoder_may_write_before_the_norm_that_follows_the_mlp() -> None:
    replacement = LocalReplacement(
        model_of("gemma2"), [transcoder(1, hook_out="mlp.hook_out", skip=True)], PROMPT
    )
    assert len(replacement.cuts) == 3
    assert residual(replacement, every_readout(replacement)) < 1e-10


def test_sums_close_with_latents_at_the_first_position() -> None:
    replacement = LocalReplacement(
        model_of("llama"), transcoders(), PROMPT, first_position_as_error=False
    )
    assert 0 in replacement.latents.position
    assert residual(replacement, every_readout(replacement)) < 1e-10


@ALL
def test_the_map_reads_what_the_model_computes(name: str) -> None:
    model = model_of(name)
    hook = model.hook_point("blocks.2.mlp.hook_in").name
    replacement = LocalReplacement(model, transcoders(), PROMPT)
    own = model.activations(PROMPT[None], [hook])[hook][0]
    # Some models cast to single precision inside their norms whatever their type.
    tolerance = 1e-12 if name in ("gpt2", "neox") else 1e-5
    assert torch.allclose(replacement.map.reads[hook], own, atol=tolerance)
    assert torch.allclose(replacement.map.logits, model.logits(PROMPT[None])[0, -1], atol=1e-4)


@ALL
def test_the_map_is_affine(name: str) -> None:
    map_ = LocalReplacement(model_of(name), transcoders(), PROMPT).map
    generator = torch.Generator().manual_seed(0)
    first, second = (
        {h: torch.randn(x.shape, generator=generator).to(x) for h, x in map_.values.items()}
        for _ in range(2)
    )
    mixed = map_.at({h: 3 * first[h] - 2 * second[h] for h in first})
    one, two = map_.at(first), map_.at(second)
    for hook, x in mixed.items():
        assert torch.allclose(x, 3 * one[hook] - 2 * two[hook], atol=1e-8, rtol=1e-8)


@ALL
def test_slopes_do_not_depend_on_the_tokens_once_patterns_and_norms_are_given(name: str) -> None:
    model = model_of(name)
    replacement = LocalReplacement(model, transcoders(), PROMPT)
    before = replacement.map.slopes(every_readout(replacement))
    # The same constants, around another point of the affine map.
    moved = {h: torch.zeros_like(x) for h, x in replacement.map.values.items()}
    change = replacement.map.at(
        {**moved, replacement.embedding: torch.ones_like(moved[replacement.embedding])}
    )
    for some, first in zip(every_readout(replacement)[-3:], (-6, -4, -2), strict=True):
        predicted = before[replacement.embedding][first : first + 2 or None].sum((1, 2))
        found = some.values(change) - some.values(replacement.map.constants)
        assert torch.allclose(predicted, found, atol=1e-9)


@ALL
def test_nothing_of_the_model_is_changed(name: str) -> None:
    model: Any = model_of(name)
    before = model.logits(PROMPT[None])
    asked = [p.requires_grad for p in model.module.parameters()]
    implementation = model.module.config._attn_implementation
    LocalReplacement(model, transcoders(), PROMPT)
    with pytest.raises(RuntimeError, match="broken"):
        _break(model)
    assert torch.equal(model.logits(PROMPT[None]), before)
    assert [p.requires_grad for p in model.module.parameters()] == asked
    assert model.module.config._attn_implementation == implementation != INTERFACE
    assert not any(sub._forward_hooks or sub._forward_pre_hooks for sub in model.module.modules())


def _break(model: Any) -> None:
    def fail(_module: Any, _args: Any) -> None:
        raise RuntimeError("broken")

    hook = model.module.get_output_embeddings().register_forward_pre_hook(fail)
    try:
        LocalReplacement(model, transcoders(), PROMPT)
    finally:
        hook.remove()


def test_more_places_can_be_read() -> None:
    replacement = LocalReplacement(
        model_of("gpt2"), transcoders(), PROMPT, reads=["blocks.1.hook_resid_mid"]
    )
    assert "blocks.1.hook_resid_mid" in replacement.map.reads
    with pytest.raises(ConfigError, match="constant or not affine"):
        LocalReplacement(model_of("gpt2"), transcoders(), PROMPT, reads=["blocks.1.mlp.hook_post"])


def test_a_model_that_is_none_of_transformers_is_refused() -> None:
    plain = load_model(tiny_models.TinyPlainModel(), name="plain", device="cpu")
    with pytest.raises(ModelError, match="Circuits are traced in transformers models"):
        FrozenMap(plain, PROMPT, [], [])


def test_a_vector_of_another_shape_is_refused() -> None:
    replacement = LocalReplacement(model_of("gpt2"), transcoders(), PROMPT)
    with pytest.raises(ShapeError, match="fits none of the cuts"):
        replacement.map.at({replacement.embedding: torch.zeros(2, 3)})


def test_a_norm_that_is_no_norm_is_refused() -> None:
    model: Any = load_model(tiny_models.tiny_llama().double(), name="odd", device="cpu")
    norm = model.module.model.norm
    plain = type(norm).forward
    norm.forward = lambda x: plain(norm, x).tanh()
    with pytest.raises(ModelError, match="no norm that saelab can hold constant"):
        LocalReplacement(model, transcoders(), PROMPT)
