"""Group Bias Adaptation: the rule by hand, its promises, and what a trained b_dec would do."""

import pytest
import torch

from saelab.activation_functions import JumpReLU, ReLU, TopK
from saelab.errors import ConfigError
from saelab.objectives import Reconstruction, Step
from saelab.planted import PlantedAtoms, recovery
from saelab.recipes.group_bias import GroupBiasRecipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer, train
from saelab.training.config import TrainConfig
from saelab.training.group_bias import GroupBias, GroupBiasConfig
from saelab.training.optimizers import Adam

FROZEN = ("b_enc", "b_dec")


def axes(activation=None, bias=0.0):
    """A tied dictionary whose latent m is coordinate m."""
    sae = SAE(4, 4, activation or ReLU(), tied=True)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(4))
        sae.W_enc.copy_(torch.eye(4))
        sae.b_enc.fill_(bias)
    return sae


def after(upkeep, sae, x, variance=100.0, optimizer=None):
    step = Step(sae, sae.forward_pairs(x, training=True), x, variance, None)
    optimizer = optimizer or Adam({"W_dec": sae.W_dec}, (0.9, 0.999))
    upkeep.after_step(step, optimizer, torch.zeros(sae.d_sae, dtype=torch.bool), len(x))


def config(**settings):
    defaults = {"groups": 2, "highest": 0.5, "lowest": 0.1, "buffer_tokens": 40}
    return GroupBiasConfig(**{**defaults, **settings})


def rows(counts, height, n=40):
    """n tokens in which latent m fires counts[m] times, at most `height[m]` above zero."""
    x = -torch.ones(n, 4)
    for latent, (count, top) in enumerate(zip(counts, height, strict=True)):
        x[:count, latent] = torch.linspace(top / 2, top, count) if count else -1.0
    return x


def test_the_rule_by_hand():
    # Groups {0, 1} with target 0.5 and {2, 3} with target 0.1, of 40 tokens.
    x = rows([30, 20, 5, 4], [3.0, 2.0, 1.0, 1.0])
    sae = axes(bias=-0.5)
    after(GroupBias(config()), sae, x + 0.5)
    # 0 fires too often, by 30 to 20; 1 is at its target; 2 fires 5 times where 4 are wanted.
    assert sae.b_enc.tolist() == pytest.approx([-0.5 - 0.03, -0.5, -0.5 - 0.01, -0.5])


def test_a_silent_latent_rises_by_its_groups_mean_until_it_fires():
    sae, upkeep = axes(bias=-0.5), GroupBias(config())
    x = rows([10, 0, 2, 0], [3.0, 0.0, 1.0, 0.0]) + 0.5
    found = []
    for _ in range(3):
        after(upkeep, sae, x)
        found.append(sae.b_enc.tolist())
    # The largest of the latent that fires, in its own group: 3 and 1, not their mean.
    assert [b[1] for b in found] == pytest.approx([-0.47, -0.44, -0.41])
    assert [b[3] for b in found] == pytest.approx([-0.49, -0.48, -0.47])
    assert [b[0] for b in found] == pytest.approx([-0.5] * 3)


def test_a_group_that_is_silent_as_a_whole_borrows_the_others_mean():
    sae = axes(bias=-0.5)
    after(GroupBias(config()), sae, rows([10, 10, 0, 0], [3.0, 1.0, 0.0, 0.0]) + 0.5)
    assert sae.b_enc[2:].tolist() == pytest.approx([-0.48, -0.48])


def test_biases_stay_between_minus_the_limit_and_zero():
    sae, upkeep = axes(), GroupBias(config(down=0.9, up=0.9, limit=0.2))
    for _ in range(5):
        after(upkeep, sae, rows([40, 0, 40, 0], [3.0, 0, 3.0, 0]), variance=1.0)
    assert sae.b_enc.tolist() == pytest.approx([-0.2, 0.0, -0.2, 0.0])
    assert torch.equal(sae.b_enc, sae.b_enc.clamp(max=0))


def test_statistics_are_those_of_the_whole_buffer():
    x = rows([30, 20, 5, 4], [3.0, 2.0, 1.0, 1.0]) + 0.5
    whole, parts = axes(bias=-0.5), axes(bias=-0.5)
    after(GroupBias(config()), whole, x)
    upkeep = GroupBias(config())
    for part in x.split(10):
        assert parts.b_enc.tolist() == [-0.5] * 4
        after(upkeep, parts, part)
    assert torch.equal(whole.b_enc, parts.b_enc)


def test_thresholds_move_as_biases_do():
    x = rows([30, 20, 5, 0], [3.0, 2.0, 1.0, 0.0]) + 0.5
    bias, jump = axes(bias=-0.5), axes(JumpReLU(threshold=0.5, bandwidth=1e-6))
    for sae in (bias, jump):
        after(GroupBias(config()), sae, x)
    assert isinstance(jump.activation, JumpReLU)
    torch.testing.assert_close(-jump.activation.threshold.detach(), bias.b_enc.detach())
    assert not jump.b_enc.any()


def test_what_the_optimizer_moves_too_is_refused():
    sae = axes()
    optimizer = Adam({"W_dec": sae.W_dec, "b_enc": sae.b_enc}, (0.9, 0.999))
    with pytest.raises(ConfigError, match=r"GroupBias moves b_enc itself.*frozen=\('b_enc'"):
        after(GroupBias(config()), sae, torch.randn(8, 4), optimizer=optimizer)
    with pytest.raises(ConfigError, match="Use ReLU"):
        after(GroupBias(config()), axes(TopK(2)), torch.randn(8, 4))
    with pytest.raises(ConfigError, match="9 groups for 4 latents"):
        after(GroupBias(config(groups=9)), axes(), torch.randn(8, 4))
    with pytest.raises(ConfigError, match=r"1\.0 times in a buffer, .* at least 4,000 tokens"):
        GroupBiasConfig(buffer_tokens=1000)
    with pytest.raises(ConfigError, match="0 < lowest <= highest < 1"):
        GroupBiasConfig(lowest=0.2)
    with pytest.raises(ConfigError, match="must all be positive"):
        GroupBiasConfig(up=0.0)


def test_groups_are_as_equal_as_can_be():
    upkeep = GroupBias(GroupBiasConfig())
    assert torch.bincount(upkeep.groups(64)).tolist() == [7, 6, 7, 6, 6, 7, 6, 7, 6, 6]
    frequencies = upkeep.config.frequencies
    assert len(frequencies) == 10
    assert frequencies[0] == 0.1 and frequencies[-1] == pytest.approx(0.001)
    assert GroupBiasConfig(groups=1).frequencies == (0.1,)


PLANTED = PlantedAtoms(d=32, n_atoms=48, l0=3.0, seed=11)
RULE = GroupBiasConfig(groups=2, highest=0.1, lowest=0.05, buffer_tokens=1024, up=0.02, down=0.02)


def trainer(steps=600, frozen=FROZEN, folder=None, activation=None):
    sae = SAE(32, 64, activation or ReLU(), tied=True)
    store = ActivationStore.from_tensor(PLANTED.sample(16_384, seed=1))
    settings = TrainConfig(
        tokens=256 * steps, batch_size=256, lr=6e-3, warmup=0.0, center="mean", frozen=frozen
    )
    return Trainer(sae, store, settings, folder, [Reconstruction()], [GroupBias(RULE)])


@pytest.mark.parametrize(
    "jump", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["relu", "jump"]
)
def test_planted_atoms_are_found_and_no_latent_fires_too_often(jump):
    activation = JumpReLU(threshold=2.0, bandwidth=1e-6) if jump else ReLU()
    frozen = (*FROZEN, "activation.threshold") if jump else FROZEN
    run = trainer(frozen=frozen, activation=activation)
    center = run.sae.b_dec.detach().clone()
    run.run()
    codes = run.sae.encode(PLANTED.sample(8000, seed=2))
    share = codes.firing_counts() / 8000
    target = torch.tensor(RULE.frequencies)[GroupBias(RULE).groups(64)]
    assert (share <= 1.35 * target).all()
    assert recovery(PLANTED.atoms, run.sae.W_dec.detach()) > 0.9
    assert codes.l0().float().mean() < 4.5
    bias = -activation.threshold if isinstance(activation, JumpReLU) else run.sae.b_enc
    assert bias.max() <= 0 and bias.min() < -0.1
    assert torch.equal(run.sae.b_dec, center)
    torch.testing.assert_close(run.sae.W_enc, run.sae.W_dec.T)


@pytest.mark.slow
def test_a_trained_b_dec_drifts_against_the_biases():
    # Why b_dec is frozen: it moves so as to give back what the biases take.
    fixed, free = trainer(), trainer(frozen=("b_enc",))
    for run in (fixed, free):
        run.run()
    x = PLANTED.sample(8000, seed=2) * fixed.sae.normalization.scale_in
    mean, length = x.mean(0), (x - x.mean(0)).norm(dim=1).mean()
    drift = [((run.sae.b_dec - mean).norm() / length).item() for run in (fixed, free)]
    found = [recovery(PLANTED.atoms, run.sae.W_dec.detach()) for run in (fixed, free)]
    assert drift[0] < 0.05 and drift[1] > 0.3
    assert found[0] - found[1] > 0.25


def test_without_the_rule_nothing_moves_the_biases():
    sae = SAE(32, 64, ReLU(), tied=True)
    store = ActivationStore.from_tensor(PLANTED.sample(4096, seed=1))
    settings = TrainConfig(tokens=512 * 8, batch_size=512, center="mean", frozen=FROZEN)
    train(sae, store, settings, terms=[Reconstruction()])
    assert not sae.b_enc.any() and sae.b_enc.grad is None


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
    whole = trainer(steps=21, folder=tmp_path / "whole")
    while not whole.finished:
        whole.step()
    for stop in (3, 10, 21):  # 3 and 10 are in the middle of a buffer
        parts = trainer(steps=21, folder=tmp_path / "parts")
        while parts.steps_done < stop:
            parts.step()
        parts.save_checkpoint()
    assert parts.sae.b_enc.any()
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, parts.sae.state_dict()[name]), name
    state = parts.upkeep[0].state()
    for name, value in whole.upkeep[0].state().items():
        assert torch.equal(value, state[name]), name


def test_inference_does_not_depend_on_the_batch_and_survives_a_save(tmp_path):
    run = trainer(steps=20)
    run.run()
    x = PLANTED.sample(100, seed=2)
    run.sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    assert again.tied
    assert torch.equal(again.encode(x).dense(), run.sae.encode(x).dense())
    assert torch.equal(again.encode(x[3:4]).indices, run.sae.encode(x)[3].indices)


@pytest.mark.parametrize("output", ["relu", "jump"])
def test_the_gradient_of_a_tied_step_is_autograds(output):
    recipe = GroupBiasRecipe(d_sae=24, tokens=4096, batch_size=64, output=output)
    x = torch.randn(64, 8, dtype=torch.float64)
    store = ActivationStore.from_tensor(x.float())
    sae = SAE(8, 24, recipe.activation(), tied=True, dtype=torch.float64)
    with torch.no_grad():
        sae.b_enc.uniform_(-0.4, 0.0)
    trainer = Trainer(sae, store, recipe.training(), terms=recipe.terms())
    rows = {trainer.hooks[0]: x}
    trainer._gradients(rows, torch.zeros(24, dtype=torch.bool), 0.5)
    found = trainer._gradients.of("W_dec") + trainer._gradients.of("W_enc").T

    W = sae.W_dec.detach().clone().requires_grad_()
    scaled = x * sae.normalization.scale_in
    pre = (scaled - sae.b_dec.detach()) @ W.T + sae.b_enc.detach()
    latents = pre.relu() if output == "relu" else pre * (pre > 1e-6)
    missed = (scaled - sae.b_dec.detach() - latents @ W).square().sum(1).mean()
    (missed / trainer.variance).backward()
    assert W.grad is not None and bool(latents.any())
    torch.testing.assert_close(found, W.grad, rtol=1e-6, atol=1e-12)
