"""Gated dictionaries against the paper's equations, in its own parameters."""

import json

import pytest
import torch

from saelab.activation_functions import Gated, JumpReLU, ReLU
from saelab.errors import CheckpointError, ConfigError
from saelab.files import read_tensors
from saelab.objectives import GateL1, GateReconstruction, Reconstruction, default_terms
from saelab.sae import SAE
from tests.sparsity_cases import (
    VARIANCE,
    assert_same,
    buffered_gradients,
    gradients,
    inputs,
    random_sae,
    value,
)

TERMS = [Reconstruction(), GateL1(coefficient=0.7), GateReconstruction()]


def papers_parameters(sae):
    """W_gate, b_gate, r and b_mag of a dictionary; differentiable in ours."""
    r = sae.activation.log_scale
    W_gate = sae.W_enc * torch.exp(-r)
    b_gate = (sae.b_enc - sae.activation.offset) * torch.exp(-r)
    return W_gate, b_gate, r, sae.b_enc


def papers_latents(sae, x):
    """f and pi from the paper's equations, densely."""
    W_gate, b_gate, r, b_mag = papers_parameters(sae)
    projected = (x - sae.b_dec if sae.pre_bias else x) @ W_gate
    pi = projected + b_gate
    return (pi > 0).double() * (torch.exp(r) * projected + b_mag).relu(), pi


def papers_loss(sae, x, coefficient=0.7, stop=True):
    latents, pi = papers_latents(sae, x)
    W_dec, b_dec = (sae.W_dec.detach(), sae.b_dec.detach()) if stop else (sae.W_dec, sae.b_dec)
    error = (x - (latents @ sae.W_dec + sae.b_dec)).square().sum()
    gate_error = (x - (pi.relu() @ W_dec + b_dec)).square().sum()
    return (error + coefficient * pi.relu().sum() + gate_error) / (len(x) * VARIANCE)


def test_latents_are_the_papers():
    sae, x = random_sae(Gated()), inputs()
    expected, pi = papers_latents(sae, x)
    torch.testing.assert_close(sae.encode(x).dense(), expected)
    # Both ways of being silent occur: a closed gate, and an open one with nothing to say.
    closed = sae.pre_activations(x) > 0
    assert ((pi <= 0) & closed).any() and ((pi > 0) & ~closed).any()


@pytest.mark.parametrize("pre_bias", [True, False])
def test_the_objective_and_its_gradients_are_the_papers(pre_bias):
    sae, x = random_sae(Gated(), pre_bias=pre_bias), inputs()
    expected = papers_loss(sae, x)
    found = value(sae, x, TERMS)
    torch.testing.assert_close(found, expected)
    assert_same(gradients(sae, found), gradients(sae, papers_loss(sae, x)))
    assert_same(buffered_gradients(sae, x, TERMS), gradients(sae, papers_loss(sae, x)))


def test_a_decoder_that_learned_from_the_gates_would_be_noticed():
    sae, x = random_sae(Gated()), inputs()
    ours = gradients(sae, value(sae, x, TERMS))["W_dec"]
    wrong = gradients(sae, papers_loss(sae, x, stop=False))["W_dec"]
    assert (ours - wrong).abs().max() > 0.1 * ours.abs().max()


def test_reconstructing_from_the_gates_teaches_neither_the_decoder_nor_its_bias():
    sae, x = random_sae(Gated(), pre_bias=False), inputs()
    found = gradients(sae, value(sae, x, [GateReconstruction()]))
    assert not found["W_dec"].any() and not found["b_dec"].any()
    for name in ("W_enc", "b_enc", "activation.offset", "activation.log_scale"):
        assert found[name].any()


def test_no_gradient_passes_the_step():
    sae, x = random_sae(Gated()), inputs()
    found = gradients(sae, value(sae, x, [Reconstruction()]))
    assert not found["activation.offset"].any() and not found["activation.log_scale"].any()
    assert found["W_enc"].any()


def test_the_decoders_lengths_do_not_enter_the_penalty():
    sae, x = random_sae(Gated()), inputs()
    assert not gradients(sae, value(sae, x, [GateL1()]))["W_dec"].any()


def test_a_saved_dictionary_is_a_jumprelu_to_the_last_bit(tmp_path):
    sae, x = random_sae(Gated()).float(), inputs().float()
    sae.save(tmp_path / "gated")
    assert json.loads((tmp_path / "gated/cfg.json").read_text())["architecture"] == "jumprelu"
    weights = read_tensors(tmp_path / "gated/sae_weights.safetensors")
    assert set(weights) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert (weights["threshold"] >= 0).all()
    other = SAE(6, 20, JumpReLU())
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(other, name).copy_(weights[name])
    other.activation.load_file_tensors({"threshold": weights["threshold"]})
    again = SAE.load(tmp_path / "gated")
    assert isinstance(again.activation, Gated)
    for one in (other, again):
        assert torch.equal(one.encode(x).dense(), sae.encode(x).dense())
        assert torch.equal(one(x), sae(x))
    assert sae.encode(x).n_pairs > 20


def test_a_file_without_thresholds_is_refused():
    activation = Gated()
    activation.setup(6, 20)
    with pytest.raises(CheckpointError, match="needs 20 thresholds"):
        activation.load_file_tensors({"threshold": torch.zeros(3)})


def test_the_penalty_rises_over_its_warmup():
    sae, x = random_sae(Gated()), inputs()
    terms = [GateL1(warmup=0.2)]
    assert value(sae, x, terms, progress=0.0).item() == 0
    half, full = (value(sae, x, terms, progress=share).item() for share in (0.1, 0.2))
    assert half == pytest.approx(full / 2)


def test_the_terms_need_a_gated_dictionary():
    sae, x = random_sae(ReLU()), inputs()
    for term in (GateL1(), GateReconstruction()):
        with pytest.raises(ConfigError, match=f"{type(term).__name__} needs a Gated dictionary"):
            value(sae, x, [term])
    with pytest.raises(ConfigError, match="must be positive"):
        GateL1(coefficient=0.0)
    names = [term.name for term in default_terms(SAE(4, 8, Gated()))]
    assert names == ["reconstruction", "gate_l1", "gate_reconstruction"]
