import pytest
import torch

from saelab.activation_functions import Gated, JumpReLU, ReLU, TopK
from saelab.decoder_norms import fold_norms, start_directions
from saelab.errors import ConfigError
from saelab.objectives import L1
from saelab.sae import SAE
from tests.sparsity_cases import TOKENS, VARIANCE, gradients, inputs, random_sae, value


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(), Gated()], ids=str)
def test_folding_keeps_reconstructions_and_scales_latents(activation):
    sae, x = random_sae(activation), inputs()
    before, recons = sae.encode(x).dense(), sae(x)
    gate = activation.gate(*pairs(sae, x)) if isinstance(activation, Gated) else None
    lengths = sae.W_dec.norm(dim=1).detach()
    fold_norms(sae)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(sae.encode(x).dense(), before * lengths)
    torch.testing.assert_close(sae(x), recons)
    if gate is not None:
        torch.testing.assert_close(activation.gate(*pairs(sae, x)), gate)


def pairs(sae, x):
    z = sae.pre_activations(x)
    return z.flatten(), torch.arange(20).repeat(len(z))


def test_a_thresholds_latents_would_be_wrong_without_folding_it():
    sae, x = random_sae(JumpReLU()), inputs()
    before, threshold = sae.encode(x).l0(), sae.activation.threshold.detach().clone()
    fold_norms(sae)
    assert torch.equal(sae.encode(x).l0(), before)
    with torch.no_grad():
        sae.activation.threshold.copy_(threshold)
    assert not torch.equal(sae.encode(x).l0(), before)


def test_latents_that_compete_cannot_be_folded():
    with pytest.raises(ConfigError, match=r"TopK\(k=2\) selects latents by comparing them"):
        fold_norms(SAE(4, 8, TopK(2)))
    sae = random_sae(ReLU())
    with torch.no_grad():
        sae.W_dec[3] = 0
    with pytest.raises(ConfigError, match="A decoder direction is zero"):
        fold_norms(sae)


def test_directions_start_at_the_length_that_was_asked_for():
    sae = SAE(6, 20, ReLU())
    directions = sae.W_dec.detach().clone()
    start_directions(sae, 0.1, encoder=0.5)
    torch.testing.assert_close(sae.W_dec.detach(), 0.1 * directions)
    torch.testing.assert_close(sae.W_enc.detach(), 0.5 * sae.W_dec.detach().T)
    with pytest.raises(ConfigError, match="both must be positive"):
        start_directions(sae, 0.0)
    with pytest.raises(ConfigError, match="is a transcoder"):
        start_directions(SAE(6, 20, ReLU(), d_out=4), 0.1)


def test_a_penalty_on_contributions_cannot_be_evaded_by_longer_directions():
    sae, x = random_sae(ReLU()), inputs()
    before = value(sae, x, [L1()]).item()
    found = gradients(sae, value(sae, x, [L1(coefficient=0.7)]))["W_dec"]
    totals = sae.encode(x).dense().sum(0)
    unit = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, 0.7 * totals[:, None] * unit / (TOKENS * VARIANCE))
    with torch.no_grad():  # half the latents, twice the directions: the same, and as expensive
        sae.W_enc.mul_(0.5)
        sae.b_enc.mul_(0.5)
        sae.W_dec.mul_(2)
    assert value(sae, x, [L1()]).item() == pytest.approx(before)
