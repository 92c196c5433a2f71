import math
from dataclasses import replace

import pytest
import torch

from saelab.activation_functions import ReLU
from saelab.errors import ConfigError
from saelab.objectives import L1, PAnnealing, Reconstruction
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer, train
from saelab.training.config import TrainConfig
from tests.sparsity_cases import (
    TOKENS,
    VARIANCE,
    assert_same,
    buffered_gradients,
    gradients,
    inputs,
    random_sae,
    step_of,
    value,
)

FORMS = pytest.mark.parametrize("form", ["Lp^p", "Lp"])


def at(term, part, weight=1.0):
    """The same term, some parts down."""
    state = {"part": torch.tensor(part), "weight": torch.tensor(weight, dtype=torch.float64)}
    term.load_state({**state, "queue": torch.empty(0, 2, dtype=torch.float64)})
    return term


@FORMS
def test_with_power_one_it_is_l1(form):
    sae, x = random_sae(ReLU()), inputs()
    found = value(sae, x, [PAnnealing(form=form, coefficient=0.7)])
    torch.testing.assert_close(found, value(sae, x, [L1(coefficient=0.7)]))


@FORMS
def test_value_and_gradients_equal_the_definition(form):
    sae, x = random_sae(ReLU()), inputs()
    term = at(PAnnealing(form=form, p_end=0.4, floor=1e-9), 10, weight=0.3)
    assert term.p == pytest.approx(0.4)
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    sizes = z.relu() * sae.W_dec.norm(dim=1)
    powers = torch.where(sizes > 0, sizes.clamp(min=1e-30) ** 0.4, 0.0).sum(1)
    expected = 0.3 * (powers if form == "Lp^p" else powers**2.5).sum() / (TOKENS * VARIANCE)
    torch.testing.assert_close(value(sae, x, [term]), expected)
    theirs = gradients(sae, expected)
    assert_same(gradients(sae, value(sae, x, [term])), theirs)
    assert_same(buffered_gradients(sae, x, [term]), theirs)


@FORMS
def test_the_loss_is_continuous_where_p_falls(form):
    sae, x = random_sae(ReLU()), inputs()
    term = PAnnealing(form=form, start=0.3, coefficient=2.0)
    before = value(sae, x, [term], progress=0.29).item()
    term.update(step_of(sae, x, [term], progress=0.29))
    assert term.p == 1
    term.update(step_of(sae, x, [term], progress=0.3))
    assert term.p == pytest.approx(0.92) and term.weight != 2.0
    assert value(sae, x, [term], progress=0.3).item() == pytest.approx(before, rel=1e-9)


def test_the_weight_is_judged_by_the_last_batches():
    sae = random_sae(ReLU())
    term = PAnnealing(start=0.3, memory=2, coefficient=1.0)
    batches = [inputs(seed) * scale for seed, scale in ((1, 50.0), (2, 1.0), (3, 1.0))]
    for x, progress in zip(batches, (0.1, 0.2, 0.3), strict=True):
        term.update(step_of(sae, x, [term], progress=progress))
    after = at(PAnnealing(), 1)
    old = [value(sae, x, [PAnnealing(coefficient=1.0)]) for x in batches[1:]]
    new = [value(sae, x, [after]) for x in batches[1:]]
    assert term.weight == pytest.approx((torch.stack(old).sum() / torch.stack(new).sum()).item())


def test_p_goes_all_the_way_down_and_no_further():
    sae, x = random_sae(ReLU()), inputs()
    term = PAnnealing(p_end=0.1, start=0.2, end=0.6, updates=4)
    seen = []
    for step in range(100):
        term.update(step_of(sae, x, [term], progress=step / 100))
        seen.append(term.p)
    assert seen[19] == 1 and seen[20] == pytest.approx(0.775)
    assert seen[59] == pytest.approx(0.325)
    assert seen[60] == seen[-1] == pytest.approx(0.1)
    assert math.isfinite(term.weight)


@FORMS
def test_tiny_latents_have_a_bounded_slope_and_silent_tokens_none(form):
    sae = random_sae(ReLU())
    x = inputs()
    with torch.no_grad():
        x[0] = sae.b_dec  # z = b_enc there
        sae.b_enc.fill_(-1e-3)
        sae.b_enc[3] = 1e-12
    term = at(PAnnealing(form=form, p_end=0.1), 10)
    step = step_of(sae, x, [term])
    assert step.forward.latents.min() < 1e-11
    (slope,) = torch.autograd.grad(term(step), step.forward.latents)
    assert slope.isfinite().all() and (slope > 0).all()
    silent = random_sae(ReLU())
    with torch.no_grad():
        silent.b_enc.fill_(-1e3)
    assert value(silent, x, [term]).item() == 0


def test_the_floor_is_reached_continuously():
    sae = SAE(1, 1, ReLU()).double()
    term = at(PAnnealing(p_end=0.3, floor=0.01), 10)
    sizes = torch.tensor([0.0, 0.005, 0.01 - 1e-12, 0.01, 0.02], dtype=torch.float64)
    found = [value(sae, (size * sae.W_dec).detach(), [term]).item() * VARIANCE for size in sizes]
    expected = [0.0, 0.5 * 0.01**0.3, 0.01**0.3, 0.01**0.3, 0.02**0.3]
    assert found == pytest.approx(expected, rel=1e-6)


PLANTED = PlantedAtoms(d=16, n_atoms=24, l0=2.0)
CONFIG = TrainConfig(tokens=3200, batch_size=64, lr=3e-3, checkpoint_every_tokens=640)


def annealed(folder=None, stop_at=None):
    sae = SAE(16, 24, ReLU())
    terms = [Reconstruction(), PAnnealing(coefficient=1.0, start=0.1)]
    store = ActivationStore.from_tensor(PLANTED.sample(2000, seed=1))

    def progress(done, *_):
        if done == stop_at:
            raise KeyboardInterrupt

    train(sae, store, CONFIG, folder, terms=terms, progress=progress)
    return sae, terms[1]


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    whole, expected = annealed()
    with pytest.raises(KeyboardInterrupt):  # between two checkpoints, in the middle of the descent
        annealed(tmp_path / "run", stop_at=1600)
    again, term = annealed(tmp_path / "run")
    assert term.p == expected.p < 1 and term.weight == expected.weight
    for name, value_ in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value_)


def test_a_checkpoint_without_the_terms_state_would_be_noticed():
    """The bits above depend on the state: started anew at the same step, the loss is another."""
    term = PAnnealing(coefficient=1.0, start=0.1)
    store = ActivationStore.from_tensor(PLANTED.sample(2000, seed=1))
    trainer = Trainer(SAE(16, 24, ReLU()), store, CONFIG, None, [Reconstruction(), term])
    for _ in range(30):
        trainer.step()
    batch = next(store.batches(64, seed=0, cursor=trainer.cursor, hooks=trainer.hooks))
    before = term.state()
    row = trainer.step(batch)
    term.load_state(PAnnealing(coefficient=1.0).state())
    assert trainer.step(batch)["p_annealing"] != pytest.approx(row["p_annealing"], rel=0.01)
    assert before["part"] > 0 and len(before["queue"]) > 0


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"p_end=0.0\) must be above 0"):
        PAnnealing(p_end=0.0)
    with pytest.raises(ConfigError, match="shares of the budget in this order"):
        PAnnealing(start=0.8, end=0.5)
    with pytest.raises(ConfigError, match="must be positive"):
        PAnnealing(coefficient=-1.0)


def test_the_budget_is_not_needed_in_steps():
    """Twice the batches, the same shares: p falls at the same share of the budget."""
    for batch in (32, 64):
        term = PAnnealing(coefficient=1.0)
        store = ActivationStore.from_tensor(PLANTED.sample(2000, seed=1))
        config = replace(CONFIG, batch_size=batch, tokens=1600)
        trainer = Trainer(SAE(16, 24, ReLU()), store, config, None, [Reconstruction(), term])
        while trainer.tokens_done <= 800:
            trainer.step()
        assert term.p == pytest.approx(0.6)  # 0.25 + 0.0556 * 4 < 0.5: the fifth part
