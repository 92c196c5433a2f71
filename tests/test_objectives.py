"""The loss terms against float64 autograd of their plain, dense definitions."""

import pytest
import torch

from saelab.activation_functions import (
    AbsTopK,
    BatchTopK,
    GroupMax,
    ReLU,
    TopK,
)
from saelab.errors import ConfigError
from saelab.kernels import GradientBuffers
from saelab.objectives import (
    L1,
    AuxK,
    Matryoshka,
    MultiTopK,
    Reconstruction,
    Step,
    default_terms,
)
from saelab.objectives.auxk import default_k_aux
from saelab.sae import SAE

D_IN, D_SAE, K, TOKENS = 6, 20, 3, 30


def sae_and_inputs(b_enc_shift=0.0, activation=None):
    sae = SAE(D_IN, D_SAE, activation or TopK(K), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.b_enc.add_(b_enc_shift)
    return sae, torch.randn(TOKENS, D_IN, dtype=torch.float64, generator=generator)


def dead_mask():
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[[1, 4, 9, 15, 16]] = True
    return mask


def selections(sae, terms, dead):
    asked = {term.name: term.selection(sae, dead) for term in terms}
    return {name: selection for name, selection in asked.items() if selection is not None}


def evaluate(sae, x, terms, dead=None, buffers=None):
    dead = torch.zeros(D_SAE, dtype=torch.bool) if dead is None else dead
    forward = sae.forward_pairs(
        x, training=True, buffers=buffers, extra=selections(sae, terms, dead)
    )
    step = Step(sae, forward, x, 2.5, buffers)
    return torch.stack([term(step) for term in terms]).sum()


def dense_auxk(sae, x, dead, k, coefficient):
    """The definition, with dense matrices and no kernel."""
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    recons = sae.activation(z) @ sae.W_dec + sae.b_dec
    error = (x - recons).detach()
    masked = z.masked_fill(~dead, -torch.inf)
    values, indices = masked.topk(min(k, int(dead.sum())), dim=1)
    latents = torch.zeros_like(z).scatter(1, indices, values.relu())
    baseline = (error - error.mean(0)).square().sum()
    return coefficient * (latents @ sae.W_dec - error).square().sum() / baseline


def dense_reconstruction(sae, x):
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    recons = sae.activation(z) @ sae.W_dec + sae.b_dec
    return (x - recons).square().sum(1).mean() / 2.5


@pytest.mark.parametrize("shift", [0.0, -6.0], ids=["usual", "fewer than k positive"])
@pytest.mark.parametrize("activation", [TopK(K), ReLU(), AbsTopK(K), GroupMax(4)], ids=str)
def test_reconstruction_and_its_gradients_equal_the_definition(activation, shift):
    sae, x = sae_and_inputs(shift, activation)
    parameters = list(sae.parameters())
    expected = dense_reconstruction(sae, x)
    found = evaluate(sae, x, [Reconstruction()])
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [2, 50], ids=["fewer than dead", "all dead"])
@pytest.mark.parametrize("with_buffers", [False, True])
def test_auxk_and_its_gradients_equal_the_definition(k, with_buffers):
    sae, x = sae_and_inputs()
    terms = [Reconstruction(), AuxK(k=k, coefficient=0.3)]
    parameters = list(sae.parameters())
    expected = dense_reconstruction(sae, x) + dense_auxk(sae, x, dead_mask(), k, 0.3)
    gradients = torch.autograd.grad(expected, parameters)
    if with_buffers:
        buffers = GradientBuffers(parameters)
        buffers.begin()
        found = evaluate(sae, x, terms, dead_mask(), buffers)
        found.backward()
        buffers.finish()
        ours = [buffers.of(p) for p in parameters]
    else:
        found = evaluate(sae, x, terms, dead_mask())
        ours = torch.autograd.grad(found, parameters)
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def auxk_gradients(sae, x, dead):
    return torch.autograd.grad(
        evaluate(sae, x, [AuxK(k=2)], dead), [sae.W_enc, sae.W_dec, sae.b_enc]
    )


def test_auxk_reaches_encoder_and_decoder_of_dead_latents_and_of_no_live_one():
    sae, x = sae_and_inputs()
    dead = dead_mask()
    W_enc, W_dec, b_enc = auxk_gradients(sae, x, dead)
    for gradient in (W_enc.T, W_dec, b_enc.unsqueeze(1)):
        touched = gradient.abs().sum(1) > 0
        assert not touched[~dead].any()
        assert touched[dead].any()
    # An encoder that gets no gradient is the commonest bug: then AuxK does nothing at all.
    assert W_enc.abs().sum() > 0


def test_auxk_does_not_pull_on_the_live_reconstruction():
    sae, x = sae_and_inputs()
    forward = sae.forward_pairs(x, extra=selections(sae, [AuxK(k=2)], dead_mask()))
    loss = AuxK(k=2)(Step(sae, forward, x, 2.5, None))
    (gradient,) = torch.autograd.grad(loss, forward.latents, allow_unused=True)
    assert gradient is None


def test_auxk_is_zero_when_nothing_is_dead():
    sae, x = sae_and_inputs()
    none = torch.zeros(D_SAE, dtype=torch.bool)
    assert evaluate(sae, x, [AuxK(k=2)], none).item() == 0
    assert evaluate(sae, x, [AuxK(k=2)], None).item() == 0


def test_auxk_is_zero_when_there_is_no_error_left_to_explain():
    sae, x = sae_and_inputs()
    forward = sae.forward_pairs(x, extra=selections(sae, [AuxK(k=2)], dead_mask()))
    step = Step(sae, forward, forward.recons.detach(), 2.5, None)
    assert AuxK(k=2)(step).item() == 0


def test_auxk_does_not_depend_on_where_zero_is():
    sae, x = sae_and_inputs()
    before = evaluate(sae, x, [AuxK(k=2)], dead_mask()).item()
    with torch.no_grad():
        sae.b_dec.add_(7.0)
    after = evaluate(sae, x + 7.0, [AuxK(k=2)], dead_mask()).item()
    assert after == pytest.approx(before, rel=1e-9)


def test_unselected_encoder_columns_get_exactly_no_gradient():
    sae, x = sae_and_inputs()
    forward = sae.forward_pairs(x)
    loss = Reconstruction()(Step(sae, forward, x, 1.0, None))
    (gradient,) = torch.autograd.grad(loss, [sae.W_enc])
    used = torch.zeros(D_SAE, dtype=torch.bool)
    used[forward.pairs.indices] = True
    assert 0 < used.sum() < D_SAE
    assert not gradient[:, ~used].any()


def test_k_aux_is_the_power_of_two_nearest_half_the_width():
    assert [default_k_aux(d) for d in (576, 768, 64, 1)] == [256, 512, 32, 1]


def test_the_default_objective_follows_from_the_activation_function():
    assert [term.name for term in default_terms(SAE(4, 8, TopK(2)))] == ["reconstruction", "auxk"]
    with pytest.raises(ConfigError, match=r"ReLU\(\) has no default objective"):
        default_terms(SAE(4, 8, ReLU()))


def test_an_auxk_of_no_weight_is_refused():
    with pytest.raises(ConfigError, match="leave the term out"):
        AuxK(coefficient=0.0)


def family_loss(activation, terms, dense, b_enc_shift=0.0):
    """The terms' value and gradients against a dense definition given (sae, x, z, latents)."""
    sae, x = sae_and_inputs(b_enc_shift, activation)
    parameters = list(sae.parameters())
    found = evaluate(sae, x, terms)
    ours = torch.autograd.grad(found, parameters, allow_unused=True)
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    expected = dense(sae, x, z)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        if other is not None:
            assert one is not None
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def relative(x, recons):
    return (x - recons).square().sum(1).mean() / 2.5


def test_multitopk_equals_its_definition():
    def dense(sae, x, z):
        wide = TopK(4 * K)(z) @ sae.W_dec + sae.b_dec
        narrow = TopK(K)(z) @ sae.W_dec + sae.b_dec
        return relative(x, narrow) + relative(x, wide) / 8

    family_loss(TopK(K), [Reconstruction(), MultiTopK()], dense)
    with pytest.raises(ConfigError, match="MultiTopK needs a TopK dictionary"):
        MultiTopK().selection(SAE(4, 8, ReLU()), torch.zeros(8, dtype=torch.bool))


def test_matryoshka_equals_its_definition_and_uses_the_same_latents_in_every_prefix():
    def dense(sae, x, z):
        latents = TopK(K)(z)
        total = torch.zeros((), dtype=torch.float64)
        for end in (5, 10, 20):
            total = total + relative(x, latents[:, :end] @ sae.W_dec[:end] + sae.b_dec)
        return total

    family_loss(TopK(K), [Matryoshka(shares=(0.25, 0.25, 0.5))], dense)


def test_matryoshka_with_one_group_is_plain_reconstruction():
    family_loss(
        TopK(K),
        [Matryoshka(shares=(1.0,))],
        lambda sae, x, z: relative(x, TopK(K)(z) @ sae.W_dec + sae.b_dec),
    )


def test_matryoshka_groups_sum_to_the_dictionary_whatever_the_rounding():
    assert Matryoshka().ends(1000)[-1] == 1000
    assert Matryoshka().ends(32) == [1, 3, 7, 15, 32]
    with pytest.raises(ConfigError, match="leaves a group without a latent at d_sae=8"):
        Matryoshka().ends(8)


def test_l1_equals_its_definition_with_decoder_norms():
    def dense(sae, x, z):
        latents = z.relu()
        recons = latents @ sae.W_dec + sae.b_dec
        penalty = (latents * sae.W_dec.norm(dim=1)).sum(1).mean() / 2.5
        return relative(x, recons) + 0.7 * penalty

    family_loss(ReLU(), [Reconstruction(), L1(coefficient=0.7)], dense)


def test_l1_rises_over_its_warmup():
    sae, x = sae_and_inputs(0.0, ReLU())
    forward = sae.forward_pairs(x)

    def value(progress):
        return L1(warmup=0.2)(Step(sae, forward, x, 2.5, None, progress)).item()

    assert value(0.0) == 0
    assert value(0.1) == pytest.approx(value(1.0) / 2)
    assert value(0.2) == value(1.0)


def test_batch_topk_reconstruction_equals_its_definition_in_training():
    def dense(sae, x, z):
        border = z.flatten().topk(2 * TOKENS).values.min()
        return relative(x, torch.where(z >= border, z, 0.0) @ sae.W_dec + sae.b_dec)

    family_loss(BatchTopK(2.0), [Reconstruction()], dense)
