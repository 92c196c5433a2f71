"""g-SAE: the score, its bit-exact special case, and what it buys where loud atoms do not matter."""

import pytest
import torch

from saelab.activation_functions import GradientTopK, TopK
from saelab.activation_functions.gradient_weighted import _rms
from saelab.errors import ConfigError
from saelab.objectives import AuxK, Reconstruction, Step
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer, train
from saelab.training.config import TrainConfig
from saelab.training.selection_gap import SelectionGap, selection_gap

D_IN, D_SAE, TOKENS = 6, 20, 30
GRAD = "place.grad"


def sae_and_rows(activation, dtype=torch.float64):
    sae = SAE(D_IN, D_SAE, activation, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(TOKENS, D_IN, dtype=dtype, generator=generator)
    return sae, x, torch.randn(TOKENS, D_IN, dtype=dtype, generator=generator)


def dense_latents(sae, x, gradients, beta, k):
    """The definition, with every matrix in full."""
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    attribution = (gradients @ sae.W_dec.T).detach().abs()
    score = z + beta * z * attribution / attribution.square().mean().sqrt()
    indices = score.topk(k, dim=1).indices
    return torch.zeros_like(z).scatter(1, indices, z.gather(1, indices).relu())


@pytest.mark.parametrize("beta", [0.3, 5.0])
def test_latents_and_gradients_equal_those_of_the_dense_definition(beta):
    sae, x, gradients = sae_and_rows(GradientTopK(3, beta, GRAD))
    sae.activation.begin_step(0.0, {GRAD: gradients})
    forward = sae.forward_pairs(x, training=True)
    found = Reconstruction()(Step(sae, forward, x, 2.5, None))
    parameters = list(sae.parameters())
    ours = torch.autograd.grad(found, parameters)
    latents = dense_latents(sae, x, gradients, beta, 3)
    expected = (x - latents @ sae.W_dec - sae.b_dec).square().sum(1).mean() / 2.5
    theirs = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    plain = dense_latents(sae, x, gradients, 0.0, 3)
    assert not torch.equal(plain, latents), "the gradient changed nothing, so nothing was tested"


def test_the_root_mean_square_is_that_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    gradients, W_dec = torch.randn(50, 7, generator=generator), torch.randn(30, 7)
    expected = (gradients @ W_dec.T).square().mean().sqrt().item()
    assert _rms(gradients, W_dec) == pytest.approx(expected, rel=1e-5)


def test_how_the_loss_is_summed_does_not_matter():
    sae, x, gradients = sae_and_rows(GradientTopK(3, 2.0, GRAD))
    found = []
    for factor in (1.0, 1 / 4096):
        sae.activation.begin_step(0.0, {GRAD: factor * gradients})
        found.append(sae.forward_pairs(x, training=True).pairs.indices)
    assert torch.equal(*found)


def test_chunks_see_the_gradients_of_their_own_rows(monkeypatch):
    sae, x, gradients = sae_and_rows(GradientTopK(3, 5.0, GRAD))
    sae.activation.begin_step(0.0, {GRAD: gradients})
    whole = sae.forward_pairs(x, training=True).pairs
    monkeypatch.setattr("saelab.kernels.encoding.MAX_CHUNK_ROWS", 16)  # two chunks: 16 and 14
    parts = sae.forward_pairs(x, training=True).pairs
    assert torch.equal(whole.offsets, parts.offsets)
    for token in range(TOKENS):
        span = slice(int(whole.offsets[token]), int(whole.offsets[token + 1]))
        assert set(whole.indices[span].tolist()) == set(parts.indices[span].tolist())


def test_with_no_gradient_known_inference_is_topk():
    sae, x, gradients = sae_and_rows(GradientTopK(3, 5.0, GRAD))
    sae.activation.begin_step(0.0, {GRAD: gradients})
    z = sae.pre_activations(x)
    assert torch.equal(sae.activation(z), TopK(3)(z))
    assert torch.equal(sae.encode(x).dense(), SAE.encode(_as_topk(sae), x).dense())


def _as_topk(sae):
    plain = SAE(D_IN, D_SAE, TopK(3), dtype=sae.dtype)
    plain.load_state_dict(sae.state_dict())
    return plain


def run(activation, folder=None, steps=30):
    generator = torch.Generator().manual_seed(3)
    rows = {"place": torch.randn(2048, D_IN, generator=generator) + 1.0}
    rows[GRAD] = torch.randn(2048, D_IN, generator=generator)
    store = ActivationStore.from_tensor(rows, "place")
    sae = SAE(D_IN, D_SAE, activation)
    config = TrainConfig(tokens=64 * steps, batch_size=64, dead_after_tokens=256)
    return train(sae, store, config, folder, terms=[Reconstruction(), AuxK()])


def test_without_weight_on_the_gradient_a_run_is_topks_to_the_last_bit():
    ours, theirs = run(GradientTopK(3, 0.0, GRAD)).sae, run(TopK(3)).sae
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    weighted = run(GradientTopK(3, 1.0, GRAD)).sae
    assert not torch.equal(weighted.W_dec, theirs.W_dec)


def test_what_is_missing_is_said():
    with pytest.raises(ConfigError, match="needs the name of the gradient"):
        GradientTopK(3, 1.0)
    with pytest.raises(ConfigError, match="0 or more"):
        GradientTopK(3, -1.0, GRAD)
    sae, x, gradients = sae_and_rows(GradientTopK(3, 1.0, GRAD))
    with pytest.raises(ConfigError, match="0 were given"):
        sae.forward_pairs(x, training=True)
    sae.activation.begin_step(0.0, {GRAD: gradients[:10]})
    with pytest.raises(ConfigError, match="10 were given"):
        sae.forward_pairs(x, training=True)
    store = ActivationStore.from_tensor({"place": torch.randn(64, D_IN)}, "place")
    with pytest.raises(ConfigError, match=r"Training needs place\.grad"):
        Trainer(SAE(D_IN, D_SAE, GradientTopK(3, 1.0, GRAD)), store)


def test_the_gap_compares_both_selections_of_one_batch():
    sae, x, gradients = sae_and_rows(GradientTopK(3, 5.0, GRAD))
    sae.activation.begin_step(0.0, {GRAD: gradients})
    gap = selection_gap(sae, x, x)
    training = dense_latents(sae, x, gradients, 5.0, 3)
    inference = TopK(3)(sae.pre_activations(x))
    spread = (x - x.mean(0)).square().sum()
    for latents, fvu, l0 in (
        (training, gap.fvu_training, gap.l0_training),
        (inference, gap.fvu_inference, gap.l0_inference),
    ):
        error = (x - latents @ sae.W_dec - sae.b_dec).square().sum()
        assert fvu == pytest.approx((error / spread).item())
        assert l0 == pytest.approx((latents > 0).sum().item() / TOKENS)
    both = ((training > 0) & (inference > 0)).sum() / (training > 0).sum()
    assert gap.shared == pytest.approx(both.item()) and gap.shared < 1
    assert "of its entries are the same" in gap.describe()
    with pytest.raises(ConfigError, match="must be positive"):
        SelectionGap(0)


def test_the_gap_is_recorded_as_often_as_asked():
    generator = torch.Generator().manual_seed(3)
    rows = {n: torch.randn(512, D_IN, generator=generator) for n in ("place", GRAD)}
    sae = SAE(D_IN, D_SAE, GradientTopK(3, 1.0, GRAD))
    config = TrainConfig(tokens=640, batch_size=64)
    upkeep = [SelectionGap(256)]
    result = train(sae, ActivationStore.from_tensor(rows, "place"), config, upkeep=upkeep)
    found = [event["step"] for event in result.events if event["kind"] == "selection_gap"]
    assert found == [4, 8]


LOUD = QUIET = 8


def loud_and_quiet():
    """Atoms, the readout of a loss that sees the quiet ones alone, and activations.

    Of 8 loud atoms 5 are on each token, with coefficient 2; of 8 quiet ones, by chance, one in
    five, with 0.3.
    """
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q[: LOUD + QUIET]
    chance = torch.rand(8192, LOUD + QUIET, generator=generator)
    loud = (chance[:, :LOUD].argsort(1).argsort(1) < 5) * 2.0
    quiet = (chance[:, LOUD:] < 0.2) * 0.3
    return atoms, atoms[LOUD:].sum(0), torch.cat([loud, quiet], 1) @ atoms


def test_with_room_for_the_loud_alone_the_gradient_keeps_the_quiet_ones_the_loss_reads():
    # The dictionary is the truth, so only the selection differs.
    atoms, readout, x = loud_and_quiet()
    mse, lost, quiet_share = [], [], []
    for beta in (0.0, 20.0):
        sae = SAE(24, LOUD + QUIET, GradientTopK(4, beta, GRAD))
        with torch.no_grad():
            sae.W_dec.copy_(atoms)
            sae.W_enc.copy_(atoms.T)
        sae.activation.begin_step(0.0, {GRAD: readout.expand_as(x)} if beta else {})
        with torch.no_grad():
            forward = sae.forward_pairs(x, training=True)
        error = x - forward.recons
        mse.append(error.square().sum(1).mean().item())
        lost.append((error @ readout).square().mean().item())
        kept = forward.pairs.indices[forward.latents > 0.1]  # an absent atom's z is rounding
        quiet_share.append((kept >= LOUD).float().mean().item())
    assert quiet_share[0] == 0 and quiet_share[1] > 0.3
    assert mse[1] > 1.2 * mse[0]
    assert lost[1] < 0.1 * lost[0]
