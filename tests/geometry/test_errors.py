"""The error of a dictionary, where its linear part is known."""

import pytest
import torch

from saelab.activation_functions import ReLU, TopK
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry import cross_layer_prediction, dark_matter, error_scaling
from saelab.geometry.least_squares import Fit
from saelab.sae import SAE


def planted(n_tokens=3000, n_atoms=24, d=32, seed=0):
    """Mixtures of orthonormal atoms, all always readable by a linear map."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(9))).Q
    on = torch.rand(n_tokens, n_atoms, generator=generator) < 0.2
    values = on * (1 + torch.rand(n_tokens, n_atoms, generator=generator))
    return values @ atoms[:n_atoms], atoms[:n_atoms]


def knowing(atoms, activation=None):
    sae = SAE(atoms.shape[1], len(atoms), activation or ReLU())
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def test_atoms_a_dictionary_lacks_are_a_linear_error():
    x, atoms = planted()
    found = dark_matter(knowing(atoms[:16]), x[:2000], x[2000:])
    assert found.linear == pytest.approx(1, abs=1e-6)
    assert found.r2_error.value == pytest.approx(1, abs=1e-6)
    assert found.fvu_nonlinear == pytest.approx(0, abs=1e-6)
    assert abs(found.r2_error.mean) < 0.1
    # 8 of 24 atoms; a coefficient's mean square is 0.2 * 7/3, its mean 0.2 * 1.5.
    assert found.fvu == pytest.approx(8 / 24 * (7 / 15) / (7 / 15 - 0.09), abs=0.02)
    # |e|^2 is a sum over atoms of squares, which a line in x gives but for the spread of values.
    assert found.r2_norm.value > 0.9
    assert found.r2_norm_length < found.r2_norm.value


def test_an_encoder_that_drops_and_invents_latents_makes_a_nonlinear_error():
    x, atoms = planted()
    noisy = knowing(atoms, TopK(3))  # 4.8 atoms are active on average
    found = dark_matter(noisy, x[:2000], x[2000:], pursuit=True)
    assert found.linear < 0.6
    assert found.fvu_nonlinear > 0.03
    assert found.r2_pooled < 0.6
    assert found.pursuit is not None
    assert found.pursuit["fvu"] == pytest.approx(found.fvu, rel=0.2)
    assert "by gradient pursuit" in str(found)


def test_an_encoder_at_fault_is_told_from_a_decoder_by_pursuit():
    x, atoms = planted()
    sae = knowing(atoms[:20])
    with torch.no_grad():
        # Latents read a little of the others, and fire where they should not.
        sae.W_enc.add_(0.1 * torch.randn(32, 20, generator=torch.Generator().manual_seed(3)))
    found = dark_matter(sae, x[:2000], x[2000:], pursuit=True)
    assert found.pursuit is not None
    assert found.fvu_nonlinear > 0.02
    assert found.pursuit["fvu_nonlinear"] < 0.5 * found.fvu_nonlinear


def test_the_fit_is_least_squares_and_its_residual_is_orthogonal_to_x():
    x, y, at = torch.randn(90, 6).double(), torch.randn(90, 3).double(), torch.randn(5, 6).double()
    expected = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(Fit(x, constant=False).predict(y, at), at @ expected)
    left = y - Fit(x, constant=False).predict(y, x)
    torch.testing.assert_close(x.T @ left, torch.zeros(6, 3).double(), atol=1e-9, rtol=0)
    ones = torch.ones(90, 1).double()
    with_constant = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    torch.testing.assert_close(
        Fit(x, constant=True).predict(y, at), at @ with_constant[:6] + with_constant[6]
    )
    # A constant coordinate is no constant of the fit, and a repeated one does no harm.
    twice = torch.cat([x, x[:, :1]], 1)
    torch.testing.assert_close(
        Fit(twice, constant=False).predict(y, twice), Fit(x, constant=False).predict(y, x)
    )


def test_noise_as_an_error_is_not_linear_on_held_out_tokens():
    # Where there are few tokens, a fit to noise is good on its own tokens and bad on others.
    x, e = torch.randn(200, 60).double(), torch.randn(200, 60).double()
    fitted = Fit(x[:120], constant=False)
    own = (e[:120] - fitted.predict(e[:120], x[:120])).square().sum() / e[:120].square().sum()
    held = (e[120:] - fitted.predict(e[:120], x[120:])).square().sum() / e[120:].square().sum()
    assert float(own) < 0.6
    assert float(held) > 1.2


def test_scaling_activations_and_dictionary_changes_no_share():
    x, atoms = planted(600)
    sae = knowing(atoms, TopK(3))
    one = dark_matter(sae, x[:400], x[400:])
    other = dark_matter(sae, 8 * x[:400], 8 * x[400:])
    assert one.linear == pytest.approx(other.linear, abs=1e-4)
    assert one.r2_norm.value == pytest.approx(other.r2_norm.value, abs=1e-4)


def test_too_few_tokens_and_exact_reconstructions_are_refused():
    x, atoms = planted(200)
    with pytest.raises(DataError, match="at least 64 and 10 are needed"):
        dark_matter(knowing(atoms), x[:50], x[50:])
    basis = torch.eye(4)
    with pytest.raises(DataError, match="the reconstruction is exact"):
        dark_matter(knowing(basis), torch.rand(40, 4), torch.rand(40, 4))
    transcoder = SAE(32, 40, ReLU(), hook="a", hook_out="b")
    with pytest.raises(ConfigError, match="use an autoencoder"):
        dark_matter(transcoder, x[:100], x[100:])


def test_wider_dictionaries_fail_on_the_tokens_of_atoms_that_none_has():
    x, atoms = planted()
    saes = [knowing(atoms[:n]) for n in (16, 8, 12)]
    found = error_scaling(saes, x)
    assert found.widths == (8, 12, 16)
    # All three miss atoms 16 to 23; the narrowest misses 8 more.
    assert 0.3 < found.correlation.value < 0.95
    assert found.correlation.excess > 0.3
    assert found.exponent < -0.5
    independent = error_scaling(
        [knowing(atoms[:12]), knowing(torch.cat([atoms[12:], atoms[12:13]]))], x
    )
    assert abs(independent.correlation.value) < 0.1
    torch.testing.assert_close(
        found.errors[0], (x - saes[1](x)).square().sum(1).detach(), atol=1e-5, rtol=1e-4
    )


def test_tokens_alike_by_length_alone_are_not_alike():
    # Errors proportional to |x|^2 are perfectly correlated, and not at all given |x|^2.
    generator = torch.Generator().manual_seed(0)
    length = 1 + 9 * torch.rand(2000, 1, generator=generator)
    x = length * torch.nn.functional.normalize(torch.randn(2000, 16, generator=generator), dim=1)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    saes = [knowing(torch.cat([half, -half])) for half in (basis[:4], basis[4:12])]
    found = error_scaling(saes, x)
    assert found.correlation.value > 0.6
    assert found.partial < 0
    with pytest.raises(ConfigError, match="at least two different ones"):
        error_scaling(saes[:1], x)


def test_an_earlier_layer_predicts_the_error_that_it_knows():
    x, atoms = planted()
    early, late = knowing(atoms[12:]), knowing(atoms[:12])
    saes = {"early": early, "late": late}
    # Both places hold the same activations: what late misses is what early has.
    found = cross_layer_prediction(
        saes, {"early": x[:2000], "late": x[:2000]}, {"early": x[2000:], "late": x[2000:]}
    )
    assert found["late", "early"][0] == pytest.approx(1, abs=1e-6)
    assert abs(found["late", "early"][1]) < 0.05
    assert abs(found["late", "late"][0]) < 0.05  # independent atoms
    with pytest.raises(ShapeError, match="not of the same tokens"):
        cross_layer_prediction(saes, {"early": x[:100], "late": x[:90]}, {"early": x, "late": x})
    with pytest.raises(ConfigError, match="no activations of late"):
        cross_layer_prediction(saes, {"early": x}, {"early": x})
    with pytest.raises(DataError, match="at least 64"):
        cross_layer_prediction(saes, {"early": x[:9], "late": x[:9]}, {"early": x, "late": x})
