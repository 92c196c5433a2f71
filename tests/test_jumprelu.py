"""JumpReLU's windows, targets and smooth counts against their definitions."""

import pytest
import torch

from saelab.activation_functions import JumpReLU, ReLU
from saelab.errors import ConfigError
from saelab.objectives import PreActivation, Reconstruction, TanhL0, TargetL0
from saelab.objectives.target_l0 import start_thresholds
from saelab.sae import SAE
from tests.sparsity_cases import (
    D_SAE,
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

WIDTH = 0.8


def random_jumprelu(to_encoder=False, bandwidth=WIDTH):
    sae = random_sae(JumpReLU(bandwidth=bandwidth, to_encoder=to_encoder))
    with torch.no_grad():
        sae.activation.threshold.copy_(torch.linspace(0.1, 1.5, D_SAE))
    return sae


def dense_z(sae, x):
    return (x - sae.b_dec) @ sae.W_enc + sae.b_enc


class DenseJump(torch.autograd.Function):
    """f and H on a dense matrix, from the equations."""

    @staticmethod
    def forward(ctx, z, threshold, width, to_encoder):
        ctx.save_for_backward(z, threshold)
        ctx.width, ctx.to_encoder = width, to_encoder
        return torch.where(z > threshold, z, 0.0), (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, *grads):
        z, threshold = ctx.saved_tensors
        inside = ((z - threshold).abs() < ctx.width / 2) & (z > 0)
        jump = (threshold * grads[0] + grads[1]) * inside / ctx.width
        dz = grads[0] * (z > threshold)
        return dz + jump if ctx.to_encoder else dz, -jump.sum(0), None, None


@pytest.mark.parametrize("to_encoder", [False, True])
def test_a_target_equals_its_definition(to_encoder):
    sae, x = random_jumprelu(to_encoder), inputs()
    terms = [Reconstruction(), TargetL0(target=4.0, coefficient=2.0)]
    latents, active = DenseJump.apply(dense_z(sae, x), sae.activation.threshold, WIDTH, to_encoder)
    error = (x - (latents @ sae.W_dec + sae.b_dec)).square().sum(1).mean()
    lengths = sae.W_dec.detach().norm(dim=1)
    price = 2.0 * (sae.activation.threshold.detach() * lengths).square().mean()
    expected = (error + price * (active.sum(1).mean() - 4)) / VARIANCE
    torch.testing.assert_close(value(sae, x, terms), expected)
    theirs = gradients(sae, expected)
    assert_same(gradients(sae, value(sae, x, terms)), theirs)
    assert_same(buffered_gradients(sae, x, terms), theirs)


def test_counting_on_the_gated_latent_instead_would_halve_the_gradient():
    # z ~ N(0, 1): d P(z > t) / dt = -density(t), which the window around z estimates. The same
    # window around f sees only its upper half, since f is 0 below the threshold.
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    gate = JumpReLU(threshold=0.7, bandwidth=0.1)
    gate.setup(4, 1)
    gate.active(z, torch.zeros(len(z), dtype=torch.int64)).mean().backward()
    assert gate.threshold.grad is not None
    on_f = -(((torch.where(z > 0.7, z, 0.0) - 0.7).abs() < 0.05) / 0.1).mean()
    assert gate.threshold.grad.item() == pytest.approx(-0.3123, rel=0.03)
    assert on_f.item() == pytest.approx(-0.3123 / 2, rel=0.05)


def test_silent_latents_are_never_in_the_window():
    # A threshold below half the window: around zero the window would hold every silent latent.
    gate = JumpReLU(threshold=0.1, bandwidth=0.4)
    gate.setup(4, 3)
    z = torch.tensor([-0.05, 0.0, 0.05])
    assert gate.select_training(z[None])[1].tolist() == [2]
    gate.active(z, torch.arange(3)).sum().backward()
    assert gate.threshold.grad is not None
    assert gate.threshold.grad.tolist() == pytest.approx([0.0, 0.0, -2.5])


def test_the_window_follows_the_thresholds_unless_it_is_given():
    free, given = JumpReLU(threshold=2.0), JumpReLU(threshold=2.0, bandwidth=0.3)
    for gate in (free, given):
        gate.setup(4, 3)
        with torch.no_grad():
            gate.threshold.mul_(3)
    assert free.width().item() == pytest.approx(3.0)
    assert given.width().item() == pytest.approx(0.3)


class TestTarget:
    def test_thresholds_start_where_the_target_is_met(self):
        sae, x = random_sae(JumpReLU()), inputs(tokens=500)
        TargetL0(target=3.0).start(sae, x)
        assert sae.encode(x).l0().float().mean().item() == pytest.approx(3.0, abs=0.01)
        assert len(sae.activation.threshold.unique()) == 1

    def test_thresholds_that_were_given_are_left_alone(self):
        sae = random_jumprelu()
        sae.activation.start = 0.5
        before = sae.activation.threshold.clone()
        TargetL0(target=3.0).start(sae, inputs())
        assert torch.equal(sae.activation.threshold, before)

    def test_more_latents_than_are_positive_start_just_above_zero(self):
        sae, x = random_sae(JumpReLU()), inputs()
        start_thresholds(sae, x, 20)
        assert 0 < sae.activation.threshold.max() <= 1e-6

    @pytest.mark.parametrize(("target", "sign"), [(1.0, 1), (15.0, -1)])
    def test_a_step_moves_all_thresholds_by_one_factor(self, target, sign):
        sae, x = random_jumprelu(), inputs()
        before = sae.activation.threshold.clone()
        l0 = sae.encode(x).l0().double().mean()
        term = TargetL0(target=target, gain=0.1)
        term.update(step_of(sae, x, [term]))
        factor = (l0 / target).log().clamp(-1, 1).mul(0.1).exp()
        torch.testing.assert_close(sae.activation.threshold.detach(), before.detach() * factor)
        assert (factor.log() * sign).item() > 0

    def test_it_is_met_even_where_no_pre_activation_is_near_a_threshold(self):
        """Latents of size 1 or 3, thresholds at 2: no window holds anything, no gradient helps."""
        sae = SAE(8, 8, JumpReLU(threshold=2.0, bandwidth=0.1), pre_bias=False)
        with torch.no_grad():
            sae.W_enc.copy_(torch.eye(8))
        x = torch.tensor([[3.0] * 2 + [1.0] * 4 + [0.0] * 2]).repeat(5, 1)
        term = TargetL0(target=6.0)
        for _ in range(60):
            term.update(step_of(sae, x, [term]))
        assert sae.encode(x).l0().tolist() == [6] * 5

    def test_the_price_is_what_a_latent_at_its_threshold_gains(self):
        # One latent, one token at z = threshold: leaving it out costs threshold^2.
        sae = SAE(4, 1, JumpReLU(threshold=1.5))
        x = (1.5 * sae.W_dec).detach()
        step = step_of(sae, x, [])
        assert TargetL0().price(step).item() == pytest.approx(1.5**2 / VARIANCE)
        assert (x - step.forward.recons).square().sum().item() == pytest.approx(1.5**2)

    def test_settings_that_make_no_sense_are_refused(self):
        with pytest.raises(ConfigError, match="the target must be positive"):
            TargetL0(target=0.0)
        with pytest.raises(ConfigError, match="the gain above 0"):
            TargetL0(gain=0.0)
        sae, x = random_sae(ReLU()), inputs()
        with pytest.raises(ConfigError, match="need a JumpReLU dictionary"):
            value(sae, x, [TargetL0()])


def some_dead():
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[1, 4, 15]] = True
    return dead


class TestTanh:
    terms = (Reconstruction(), TanhL0(coefficient=0.7, scale=0.5), PreActivation(coefficient=0.3))

    def dense(self, sae, x):
        z, dead = dense_z(sae, x), some_dead()
        threshold, lengths = sae.activation.threshold, sae.W_dec.norm(dim=1)
        latents, _ = DenseJump.apply(z, threshold, WIDTH, True)
        error = (x - (latents @ sae.W_dec + sae.b_dec)).square().sum()
        count = torch.tanh(0.5 * latents * lengths).sum()
        missing = ((threshold - z).relu() * lengths)[:, dead].sum()
        return (error + 0.7 * 0.4 * count + 0.3 * missing) / (TOKENS * VARIANCE)

    def test_it_equals_its_definition_with_the_jump_reaching_the_encoder(self):
        sae, x = random_jumprelu(to_encoder=True), inputs()
        settings = {"dead": some_dead(), "progress": 0.4}
        torch.testing.assert_close(value(sae, x, self.terms, **settings), self.dense(sae, x))
        theirs = gradients(sae, self.dense(sae, x))
        assert_same(gradients(sae, value(sae, x, self.terms, **settings)), theirs)
        assert_same(buffered_gradients(sae, x, self.terms, **settings), theirs)

    def test_a_closed_latent_in_the_window_is_pushed_down(self):
        # tanh(|f|) would have no slope at f = 0, and the window nothing to pass on.
        z = torch.tensor([0.45], requires_grad=True)
        gate = JumpReLU(threshold=0.5, bandwidth=0.2, to_encoder=True)
        gate.setup(4, 1)
        torch.tanh(4 * gate.at_pairs(z, torch.tensor([0]))).sum().backward()
        assert z.grad is not None and gate.threshold.grad is not None
        assert z.grad.item() == pytest.approx(4 * 0.5 / 0.2)
        assert gate.threshold.grad.item() == pytest.approx(-4 * 0.5 / 0.2)
        sae, x = random_jumprelu(to_encoder=True), inputs()
        step = step_of(sae, x, [])
        (slope,) = torch.autograd.grad(TanhL0()(step), step.forward.latents)
        assert (slope[step.forward.latents == 0] > 0).all()

    def test_with_an_empty_window_the_gradient_is_that_of_the_plain_gate(self):
        x = inputs()
        narrow = random_jumprelu(to_encoder=True, bandwidth=1e-9)
        found = gradients(narrow, value(narrow, x, [Reconstruction(), TanhL0()]))
        z = dense_z(narrow, x)
        latents = z * (z > narrow.activation.threshold)
        lengths = narrow.W_dec.norm(dim=1)
        error = (x - (latents @ narrow.W_dec + narrow.b_dec)).square().sum()
        count = 2 * torch.tanh(4 * latents * lengths).sum()
        theirs = gradients(narrow, (error + count) / (TOKENS * VARIANCE))
        assert_same(found, {**theirs, "activation.threshold": torch.zeros(D_SAE).double()})

    def test_only_dead_latents_are_pulled(self):
        sae, x = random_jumprelu(to_encoder=True), inputs()
        found = gradients(sae, value(sae, x, [PreActivation()], dead=some_dead()))
        for name in ("b_enc", "activation.threshold"):
            assert torch.equal(found[name] != 0, some_dead())
        assert (found["b_enc"] <= 0).all()  # a descent raises them
        assert value(sae, x, [PreActivation()]).item() == 0

    def test_the_weight_rises_over_the_whole_run(self):
        sae, x = random_jumprelu(), inputs()
        found = [value(sae, x, [TanhL0()], progress=share).item() for share in (0.0, 0.5, 1.0)]
        assert found == pytest.approx([0.0, found[2] / 2, found[2]])

    def test_settings_that_make_no_sense_are_refused(self):
        with pytest.raises(ConfigError, match="all must be positive"):
            TanhL0(scale=0.0)
        sae, x = random_sae(ReLU()), inputs()
        with pytest.raises(ConfigError, match="PreActivation needs a JumpReLU"):
            value(sae, x, [PreActivation()], dead=some_dead())
