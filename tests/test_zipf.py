"""AuxZipf and the curve behind it."""

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.errors import ConfigError
from saelab.objectives import AuxK, AuxZipf, Step
from saelab.objectives.zipf import WARMUP
from saelab.sae import SAE
from saelab.zipf_curve import ZipfCurve, fit_zipf

D_IN, D_SAE = 6, 20


@pytest.mark.parametrize("shift", [0.0, 4.0, 64.0])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_a_curve_on_the_grid_is_found_whatever_the_order_of_the_latents(shift, exponent):
    true = ZipfCurve(first=0.3, shift=shift, exponent=exponent).expected(200)
    shuffled = true[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    found = fit_zipf(shuffled)
    assert found is not None and found.shift == shift
    assert found.first == pytest.approx(0.3) and found.exponent == pytest.approx(exponent)


def test_the_least_frequent_fifth_does_not_bend_the_curve():
    true = 0.3 / torch.arange(1, 101).double()
    dying = true.clone()
    dying[80:] = 1e-9
    assert fit_zipf(dying) == fit_zipf(true)


def test_a_tail_that_falls_as_fast_as_an_exponential_gives_finite_numbers():
    # The best shift is then the largest, with an exponent in the thousands.
    found = fit_zipf(0.5 * torch.exp(-0.3 * torch.arange(64).double()))
    assert found is not None and found.exponent > 1000
    expected = found.expected(64)
    assert expected.isfinite().all() and (expected > 0).all()


def test_nothing_is_fitted_to_a_silent_dictionary():
    assert fit_zipf(torch.zeros(50)) is None
    assert fit_zipf(torch.tensor([0.1, 0.1, 0.0, 0.0])) is None


def sae_and_inputs():
    sae = SAE(D_IN, D_SAE, TopK(3), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae, torch.randn(30, D_IN, dtype=torch.float64, generator=generator)


def dead_mask(*latents):
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(latents)] = True
    return mask


def with_density(term, density):
    term.load_state({"steps": torch.tensor(WARMUP), "density": density})
    return term


def evaluate(term, sae, x, dead):
    selection = term.selection(sae, dead)
    extra = {} if selection is None else {term.name: selection}
    return term(Step(sae, sae.forward_pairs(x, training=True, extra=extra), x, 2.5, None))


def zipf_density():
    return 0.5 / torch.arange(1, D_SAE + 1).double()


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["share 0", "nothing below its curve"])
def test_it_is_auxk_where_only_dead_latents_are_underused(share):
    sae, x = sae_and_inputs()
    dead, parameters = dead_mask(1, 4, 9, 15, 16), list(sae.parameters())
    density = zipf_density() if share else torch.rand(D_SAE, dtype=torch.float64)
    ours = evaluate(with_density(AuxZipf(k=2, share=share), density), sae, x, dead)
    theirs = evaluate(AuxK(k=2), sae, x, dead)
    assert ours.item() == theirs.item() > 0
    for one, other in zip(
        torch.autograd.grad(ours, parameters, allow_unused=True),
        torch.autograd.grad(theirs, parameters, allow_unused=True),
        strict=True,
    ):
        assert (one is None and other is None) or torch.equal(one, other)


def test_before_densities_are_known_it_is_auxk():
    sae, x = sae_and_inputs()
    dead = dead_mask(2, 3)
    assert evaluate(AuxZipf(), sae, x, dead).item() == evaluate(AuxK(), sae, x, dead).item()
    assert evaluate(AuxZipf(), sae, x, dead_mask()).item() == 0


def test_the_weight_is_how_far_a_latent_is_below_its_curve():
    density = zipf_density()
    density[18] = density[18] / 4  # the last but one in rank falls to the last
    density[19] = density[19] / 10
    weights = with_density(AuxZipf(), density).underused(dead_mask(0))
    assert weights[0] == 1  # dead
    assert not weights[1:18].any()
    # Ranks stay: latent 18 is 19th, of which the curve expects 0.5 / 19.
    assert weights[18].item() == pytest.approx(0.75, rel=1e-6)
    assert weights[19].item() == pytest.approx(0.9, rel=1e-6)


def test_gradients_equal_those_of_the_dense_definition():
    sae, x = sae_and_inputs()
    density = zipf_density()
    density[17:] = torch.tensor([1e-4, 1e-3, 2e-3], dtype=torch.float64)
    term, dead = with_density(AuxZipf(k=2), density), dead_mask(5)
    weights = term.underused(dead)
    assert (weights > 0).sum() == 4
    found = evaluate(term, sae, x, dead)
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    recons = sae.activation(z) @ sae.W_dec + sae.b_dec
    error = (x - recons).detach()
    weighted = (z * weights).masked_fill(weights == 0, -torch.inf)
    values, indices = weighted.topk(2, dim=1)
    latents = torch.zeros_like(z).scatter(1, indices, values.relu())
    baseline = (error - error.mean(0)).square().sum()
    expected = (latents @ sae.W_dec - error).square().sum() / baseline / 32
    torch.testing.assert_close(found, expected)
    parameters = [sae.W_enc, sae.b_enc, sae.W_dec]
    for one, other in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
        assert one.abs().sum() > 0


def test_the_density_is_a_running_mean_of_how_often_latents_fire():
    sae, x = sae_and_inputs()
    term = AuxZipf()
    forward = sae.forward_pairs(x, training=True)
    fired = torch.zeros(30, D_SAE)
    fired[forward.pairs.tokens(), forward.pairs.indices] = (forward.latents > 0).float()
    for _ in range(3):
        term.update(Step(sae, forward, x, 2.5, None))
    torch.testing.assert_close(term.state()["density"], fired.mean(0).double())
    assert term.state()["steps"] == 3


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        AuxZipf(share=2.0)
    with pytest.raises(ConfigError, match="leave the term out"):
        AuxZipf(coefficient=0)
