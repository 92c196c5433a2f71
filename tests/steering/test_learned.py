"""A learned push finds the latent that decides, and its gradient is the loss's own."""

import math

import pytest
import torch
from torch import nn

from saelab.activation_functions import AbsTopK, ReLU, TopK
from saelab.errors import ConfigError, DataError
from saelab.models import load_model
from saelab.sae import SAE
from saelab.steering import (
    LearnConfig,
    Preference,
    PushCode,
    intervene,
    learn_push,
    load_interventions,
    save_interventions,
)
from saelab.steering.learned import _deltas, _pushed, _Rows, preference_loss
from tests.tiny_models import random_tokens, tiny_language_model, tiny_tokenizer

WORDS = ["yes", "no", "one", "two", "three", "four"]
WIDTH, DECIDES, NEVER = 8, 2, 5


class TwoAnswers(nn.Module):
    """Embedding, a place to edit, unembedding: "yes" against "no" is linear in one coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 + len(WORDS), WIDTH)
        self.place = nn.Identity()
        self.head = nn.Linear(WIDTH, 2 + len(WORDS), bias=False)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding.weight.copy_(torch.rand(2 + len(WORDS), WIDTH) + 0.1)
            self.embedding.weight[:, NEVER] = -1.0
            self.head.weight.zero_()
            self.head.weight[2, DECIDES], self.head.weight[3, DECIDES] = 1.0, -1.0

    def forward(self, tokens):
        return self.head(self.place(self.embedding(tokens)))


@pytest.fixture(scope="module")
def toy():
    return load_model(TwoAnswers(), tokenizer=tiny_tokenizer(WORDS), name="toy", device="cpu")


@pytest.fixture(scope="module")
def oracle():
    """A dictionary of the eight coordinates themselves; coordinate 5 is never positive."""
    sae = SAE(WIDTH, WIDTH, ReLU(), hook="place.output", pre_bias=False)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(WIDTH))
        sae.W_dec.copy_(torch.eye(WIDTH))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


PAIRS = [Preference(prompt=word, chosen="yes", rejected="no") for word in WORDS[2:]]


def test_yapo_finds_the_latent_that_decides_and_no_other(toy, oracle):
    config = LearnConfig(steps=60, warmup=5, lr=0.05)
    found = learn_push(toy, PAIRS, sae=oracle, config=config)
    assert found.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found.losses[-1] < found.losses[0]
    assert float(found.vector[DECIDES]) > 0.5
    assert found.support(1e-6) == 1
    row = torch.tensor([[4]])
    clean = toy.logits(row)[0, -1]
    preferred = {}
    for strength in (1.0, -1.0):
        with intervene(toy, [found.intervention(strength)], positions=slice(None)):
            pushed = toy.logits(row)[0, -1]
        preferred[strength] = float((pushed - clean)[2] - (pushed - clean)[3])
    assert preferred[1.0] > 0 > preferred[-1.0]


def test_bipo_finds_the_same_in_the_models_own_space(toy):
    config = LearnConfig(steps=60, warmup=5, lr=0.05)
    found = learn_push(toy, PAIRS, hook="place.output", config=config)
    assert found.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found.support(1e-6) == 1
    assert float(found.vector[DECIDES]) > 0.5


def test_without_the_reference_the_first_loss_is_the_models_own_preference(toy, oracle):
    config = LearnConfig(steps=1, batch_size=1, reference_free=True, both_ways=False)
    found = learn_push(toy, PAIRS[:1], sae=oracle, config=config)
    log_p = toy.logits(torch.tensor([toy.encode("one")]))[0, -1].log_softmax(-1)
    own = float(log_p[2] - log_p[3])
    assert found.losses[0] == pytest.approx(-math.log(1 / (1 + math.exp(-0.1 * own))), abs=1e-6)
    assert abs(found.losses[0] - math.log(2)) > 1e-3


@pytest.mark.parametrize("keep", ["relu", "select", "none"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_gradient_is_that_of_finite_differences(keep, sign):
    """Of a real tiny model, for latents that are active and for some that are not."""
    model = tiny_language_model()
    activation = TopK(24) if keep == "select" else ReLU()
    sae = SAE(model.d_model, 24, activation, hook="blocks.1.hook_resid_post", seed=1)
    pairs = [
        Preference(prompt="The cat", chosen=" sat", rejected=" ate it"),
        Preference(prompt="A dog ran", chosen="!", rejected=" on"),
    ]
    rows = [_Rows(model, pair) for pair in pairs]

    def loss(vector):
        with _pushed(model, vector, sign, sae, "", keep):
            # A small beta: a preference that is settled has no slope to compare.
            return preference_loss(_deltas(model, rows), sign, 0.02)

    start = torch.linspace(0.3, 0.6, 24) * torch.tensor([1.0, -1.0]).repeat(12)
    vector = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(vector), vector)
    largest = float(gradient.abs().max())
    assert largest > 1e-3
    with torch.no_grad():
        for latent in (*range(0, 24, 5), int(gradient.abs().argmax())):
            step = torch.zeros(24)
            step[latent] = 4e-3
            slope = float(loss(start + step) - loss(start - step)) / 8e-3
            assert slope == pytest.approx(float(gradient[latent]), abs=0.05 * largest)


def test_a_latent_that_never_fires_gets_no_gradient_under_relu(toy, oracle):
    rows = [_Rows(toy, pair) for pair in PAIRS]
    vector = torch.zeros(WIDTH, requires_grad=True)
    with _pushed(toy, vector, 1.0, oracle, "", "relu"):
        loss = preference_loss(_deltas(toy, rows), 1.0, 0.1)
    (gradient,) = torch.autograd.grad(loss, vector)
    assert float(gradient[DECIDES]) < 0
    # Let the decision depend on the silent latent as well: its gradient is still exactly zero.
    with torch.no_grad():
        toy.module.head.weight[2, NEVER] = 1.0
    try:
        with _pushed(toy, vector, 1.0, oracle, "", "relu"):
            loss = preference_loss(_deltas(toy, rows), 1.0, 0.1)
        (gradient,) = torch.autograd.grad(loss, vector)
        assert float(gradient[NEVER]) == 0.0
        with _pushed(toy, vector, 1.0, oracle, "", "none"):
            loss = preference_loss(_deltas(toy, rows), 1.0, 0.1)
        (gradient,) = torch.autograd.grad(loss, vector)
        assert float(gradient[NEVER]) != 0.0
    finally:
        with torch.no_grad():
            toy.module.head.weight[2, NEVER] = 0.0


def test_answers_count_alone_and_padding_never(toy):
    """The prompt's tokens are in neither sum; a longer partner in the batch changes nothing."""
    short = Preference(prompt="one", chosen="yes", rejected="no")
    long = Preference(prompt="one two three", chosen="yes no", rejected="no")
    rows = [_Rows(toy, short), _Rows(toy, long)]
    together = _deltas(toy, rows)
    assert torch.allclose(together[0], _deltas(toy, rows[:1])[0])
    assert torch.allclose(together[1], _deltas(toy, rows[1:])[0])
    log_p = toy.logits(torch.tensor([[0, 4]]))[0, -1].log_softmax(-1)
    assert float(together[0]) == pytest.approx(float(log_p[2] - log_p[3]), abs=1e-6)


@pytest.mark.parametrize(
    ("family", "keep"), [(TopK, "relu"), (TopK, "select"), (AbsTopK, "select")]
)
def test_no_push_changes_no_bit_and_a_code_stays_a_code(family, keep):
    model = tiny_language_model()
    sae = SAE(model.d_model, 24, family(3), hook="blocks.1.hook_resid_post", seed=1)
    row = random_tokens(2, 8, d_vocab=250)
    clean = model.logits(row)
    with intervene(model, [PushCode(sae, torch.zeros(24), 1.0, keep)]):
        assert torch.equal(model.logits(row), clean)
    with intervene(model, [PushCode(sae, torch.ones(24), 0.0, keep)]):
        assert torch.equal(model.logits(row), clean)
    if keep == "select":
        x = torch.randn(5, model.d_model)
        push = PushCode(sae, torch.randn(24), 1.0, keep)
        own = sae.encode(x).dense()
        kept = sae.activation(own + push.vector)
        assert int((kept != 0).sum(1).max()) <= 3
        moved = push.change(x, x, torch.arange(5)) - x
        assert torch.allclose(moved, (kept - own) @ sae.W_dec, atol=1e-5)


def test_a_learned_push_survives_a_recipe(tmp_path):
    model = tiny_language_model()
    sae = SAE(model.d_model, 24, TopK(3), hook="blocks.1.hook_resid_post", seed=1)
    push = PushCode(sae, torch.randn(24), -0.5, "select")
    save_interventions(tmp_path / "learned.json", [push])
    (again,) = load_interventions(tmp_path / "learned.json", [sae])
    assert isinstance(again, PushCode)
    assert torch.equal(again.vector, push.vector)
    assert (again.strength, again.keep) == (push.strength, push.keep)


def test_mistakes_are_refused(toy, oracle):
    with pytest.raises(ConfigError, match="either a dictionary"):
        learn_push(toy, PAIRS)
    with pytest.raises(DataError, match="no pairs"):
        learn_push(toy, [], sae=oracle)
    with pytest.raises(DataError, match="none empty"):
        learn_push(toy, [Preference(prompt="one", chosen="", rejected="no")], sae=oracle)
    with pytest.raises(ConfigError, match="must be positive"):
        LearnConfig(lr=0.0)
    signed = SAE(WIDTH, WIDTH, AbsTopK(2), hook="place.output")
    with pytest.raises(ConfigError, match="Use 'select'"):
        PushCode(signed, torch.zeros(WIDTH), 1.0, "relu")
    with pytest.raises(ConfigError, match=r"\[8\]; found \[3\]"):
        PushCode(oracle, torch.zeros(3))
