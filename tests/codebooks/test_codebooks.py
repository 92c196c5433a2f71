"""A finite-state machine with more states than neurons: one code a state, and forcing it."""

import pytest
import torch
from torch import nn

from saelab.activation_functions import Codes, TopK
from saelab.codebooks import (
    CodebookConfig,
    ForceCodes,
    codebook_for,
    codes_for,
    inserted,
    learn_codes,
    mutual_information,
    straight_through,
)
from saelab.errors import ConfigError, CorpusError, DataError, ShapeError
from saelab.models import load_model
from saelab.sae import SAE
from saelab.steering import intervene, load_interventions, save_interventions
from saelab.steering.forcing import codes_of
from tests.tiny_models import random_tokens, tiny_language_model

STATES, WIDTH = 20, 6
HOOK = "place.output"


class Machine(nn.Module):
    """The next state depends on the present one alone; states lie in fewer dimensions than states.

    `before` and `place` are two places to put a codebook, one after the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(STATES, WIDTH)
        self.before, self.place = nn.Identity(), nn.Identity()
        self.head = nn.Linear(WIDTH, STATES, bias=False)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            states = torch.nn.functional.normalize(torch.randn(STATES, WIDTH), dim=1)
            self.embedding.weight.copy_(3 * states)
            self.head.weight.copy_(1.5 * torch.randn(STATES, WIDTH))

    def forward(self, tokens):
        return self.head(self.place(self.before(self.embedding(tokens))))


@pytest.fixture(scope="module")
def machine():
    return load_model(Machine(), name="machine", device="cpu")


@pytest.fixture(scope="module")
def runs(machine):
    """Walks of the machine itself: 64 of 24 states."""
    generator = torch.Generator().manual_seed(3)
    chance = machine.logits(torch.arange(STATES)[:, None])[:, 0].softmax(-1)
    rows = [torch.randint(STATES, (64,), generator=generator)]
    for _ in range(23):
        rows.append(torch.multinomial(chance[rows[-1]], 1, generator=generator)[:, 0])
    return torch.stack(rows, dim=1)


@pytest.fixture(scope="module")
def exact(machine, runs):
    x = machine.activations(runs, [HOOK])[HOOK].flatten(0, 1)
    return codebook_for(x, STATES, hook=HOOK, iterations=15)


def divergence(p, q):
    """Jensen-Shannon divergence of two rows of logits, nats."""
    p, q = p.softmax(-1), q.softmax(-1)
    middle = (p + q) / 2

    def kl(a):
        return (a * (a / middle).log()).sum(-1)

    return (kl(p) + kl(q)) / 2


def test_every_state_has_a_code_of_its_own_and_the_machine_runs_on_codes(machine, runs, exact):
    x = machine.activations(runs, [HOOK])[HOOK].flatten(0, 1)
    on, state = exact.encode(x).indices.long(), runs.flatten()
    counts = torch.bincount(state, minlength=STATES).double() / len(state)
    entropy = float(-(counts[counts > 0] * counts[counts > 0].log()).sum())
    assert mutual_information(on, state) == pytest.approx(entropy, abs=1e-6)
    clean = machine.logits(runs)
    with inserted(machine, [exact]):
        torch.testing.assert_close(machine.logits(runs), clean, atol=1e-3, rtol=1e-3)
    assert torch.equal(machine.logits(runs), clean)


def test_forcing_a_states_code_gives_that_states_transitions(machine, runs, exact):
    x = machine.activations(runs, [HOOK])[HOOK].flatten(0, 1)
    here = torch.tensor([[4]])
    for state in (0, 7, 13):
        best = codes_for(exact.encode(x), runs.flatten() == state)[0]
        assert (best.precision, best.recall, best.f1) == (1.0, 1.0, 1.0)
        with intervene(machine, [ForceCodes(exact, [best.code])], positions=slice(None)):
            forced = machine.logits(here)[0, 0]
        true = machine.logits(torch.tensor([[state]]))[0, 0]
        assert float(divergence(forced, true)) < 1e-5
        assert float(divergence(machine.logits(here)[0, 0], true)) > 0.05


def test_the_models_loss_teaches_codes_that_started_anywhere(machine, runs):
    """By the machine's loss alone, through a second codebook, straight through."""
    pair = [
        SAE(WIDTH, STATES + 8, Codes(1), hook=hook, tied=True, seed=2)
        for hook in ("before.output", HOOK)
    ]
    x = machine.activations(runs, [HOOK])[HOOK]
    config = CodebookConfig(steps=120, rows=12, lr=0.08, mse=0.0, replace_every=25)
    losses = learn_codes(machine, pair, runs, config)
    clean = machine.logits(runs)[:, :-1].flatten(0, 1)
    own = float(torch.nn.functional.cross_entropy(clean, runs[:, 1:].flatten()))
    start, end = losses[0], sum(losses[-10:]) / 10
    assert start > own + 0.5
    assert end < own + 0.3 * (start - own)
    on = pair[0].encode(x.flatten(0, 1)).indices.long()
    counts = torch.bincount(runs.flatten()).double() / runs.numel()
    entropy = float(-(counts[counts > 0] * counts[counts > 0].log()).sum())
    assert mutual_information(on, runs.flatten()) > 0.8 * entropy
    assert all(torch.equal(one.W_enc, one.W_dec.T) for one in pair)


def test_the_gradient_passes_a_codebook_as_if_it_were_not_there():
    h = torch.randn(5, 4, requires_grad=True)
    recons = torch.randn(5, 4, requires_grad=True)
    out = straight_through(h, recons)
    assert torch.equal(out, recons)
    weights = torch.randn(5, 4)
    (of_h, of_recons) = torch.autograd.grad((out * weights).sum(), [h, recons])
    assert torch.equal(of_h, weights) and torch.equal(of_recons, weights)


def test_forcing_all_of_a_tokens_own_codes_changes_nothing():
    model = tiny_language_model()
    hook, row = "blocks.1.hook_resid_post", random_tokens(1, 8, d_vocab=250)
    x = model.activations(row, [hook])[hook][0]
    book = codebook_for(torch.randn(200, 32), 16, k=3, hook=hook)
    own = book.encode(x[5:6]).indices.long()
    best = int(codes_of(book).scores(book.pre_activations(x[5:6])).argmax())
    at = torch.zeros(1, dtype=torch.long)
    kept = ForceCodes(book, own.tolist(), keep_error=True).change(x[5:6], x[5:6], at)
    torch.testing.assert_close(kept, x[5:6], atol=1e-5, rtol=1e-5)
    plain = ForceCodes(book, [best]).change(x[5:6], x[5:6], at)
    torch.testing.assert_close(plain, book(x[5:6]), atol=1e-5, rtol=1e-5)
    emptied = ForceCodes(book, [-1]).change(x[5:6], x[5:6], at)
    scale = book.normalization.scale_out
    torch.testing.assert_close(
        emptied, book(x[5:6]) - book.W_dec[best] / 3 / scale, atol=1e-5, rtol=1e-5
    )


def test_text_with_forced_codes_is_written_as_without_a_cache():
    model = tiny_language_model()
    book = codebook_for(torch.randn(200, 32), 16, k=2, hook="blocks.1.hook_resid_post")
    row = random_tokens(1, 6, d_vocab=250)
    with intervene(model, [ForceCodes(book, [3], keep_error=True)], positions=slice(6, None)):
        written, slow = model.generate(row, max_new_tokens=5), row
        for _ in range(5):
            slow = torch.cat([slow, model.logits(slow)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, slow)
    with inserted(model, [book]):
        written, slow = model.generate(row, max_new_tokens=5), row
        for _ in range(5):
            slow = torch.cat([slow, model.logits(slow)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, slow)


def test_forced_codes_survive_a_recipe(tmp_path):
    book = codebook_for(torch.randn(200, 32), 16, k=2, hook="blocks.1.hook_resid_post")
    save_interventions(tmp_path / "forced.json", [ForceCodes(book, [3, -1], keep_error=True)])
    (again,) = load_interventions(tmp_path / "forced.json", [book])
    assert isinstance(again, ForceCodes)
    assert (list(again.codes), again.keep_error) == ([3, -1], True)


def test_a_rule_is_found_by_precision_and_recall():
    from saelab.sparse_codes import SparseCodes

    on = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]).float()
    found = codes_for(SparseCodes.from_dense(on), torch.tensor([True, True, False, False]))
    assert [(one.code, one.precision, one.recall, one.n_on) for one in found] == [
        (0, 1.0, 1.0, 2), (1, 0.5, 0.5, 2), (2, 0.0, 0.0, 1)
    ]  # fmt: skip
    with pytest.raises(DataError, match="some tokens have it and some not"):
        codes_for(SparseCodes.from_dense(on), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="4 tokens need as many labels"):
        codes_for(SparseCodes.from_dense(on), torch.ones(3, dtype=torch.bool))


def test_mistakes_are_refused(machine, runs, exact):
    with pytest.raises(ConfigError, match="1 to 1 can be replaced"):
        ForceCodes(exact, [1, 2])
    with pytest.raises(ConfigError, match="no code 20"):
        ForceCodes(exact, [20])
    plain = SAE(WIDTH, 8, TopK(2), hook=HOOK)
    with pytest.raises(ConfigError, match="activation function Codes"):
        ForceCodes(plain, [1])
    with pytest.raises(ConfigError, match="one at each hook point"), inserted(machine, [exact] * 2):
        pass
    with pytest.raises(ConfigError, match="no codebook"):
        learn_codes(machine, [], runs)
    with pytest.raises(CorpusError, match="two tokens or more"):
        learn_codes(machine, [exact], runs[:, :1])
