"""top-AFA: how many latents a token keeps, the AFA term, and the norms behind both."""

import pytest
import torch

from saelab.activation_functions import NormMatching
from saelab.activation_functions import norm_matching as module
from saelab.errors import ConfigError, ShapeError
from saelab.norm_geometry import (
    NormGeometry,
    largest_cosine,
    length_gap_bound,
    norm_geometry,
    zf_figure,
)
from saelab.normalization import Normalization
from saelab.objectives import AFA, AuxK, Reconstruction, Step, default_terms
from saelab.planted import PlantedAtoms, recovery
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig

D_IN, D_SAE, TOKENS = 6, 20, 30


def sae_and_inputs(dtype=torch.float64, spread=1.0):
    sae = SAE(D_IN, D_SAE, NormMatching(), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return sae, torch.randn(TOKENS, D_IN, dtype=dtype, generator=generator)


def dense_latents(sae, x):
    """The definition, row by row, with a full sort."""
    centred = x - sae.b_dec
    z = centred @ sae.W_enc + sae.b_enc
    pieces = (z.relu() * sae.W_dec.norm(dim=1)).square()
    kept = torch.zeros_like(z)
    for token, row in enumerate(pieces.detach()):
        order = row.argsort(descending=True)
        lengths = row[order].cumsum(0).sqrt()
        k = 1 + int((lengths - centred[token].norm()).abs().argmin())
        kept[token, order[:k]] = 1
    return z.relu() * kept


@pytest.mark.parametrize("cap", [2, 8, 128], ids=lambda cap: f"cap {cap}")
def test_each_token_keeps_as_many_as_make_the_lengths_nearest(monkeypatch, cap):
    monkeypatch.setattr(module, "CAP", cap)  # tokens that need more fall back, exactly
    sae, x = sae_and_inputs(spread=0.33)
    codes = sae.encode(x)
    torch.testing.assert_close(codes.dense(), dense_latents(sae, x).detach())
    l0 = codes.l0()
    assert l0.min() < 4 and l0.max() > 8, "too alike to test the fallback"


def test_gradients_equal_those_of_the_dense_definition():
    sae, x = sae_and_inputs(spread=0.33)
    step = Step(sae, sae.forward_pairs(x, training=True), x, 2.5, None)
    found = Reconstruction()(step) + AFA(coefficient=0.7)(step)
    latents = dense_latents(sae, x)
    recons = latents @ sae.W_dec + sae.b_dec
    lengths = (latents * sae.W_dec.norm(dim=1)).norm(dim=1)
    excess = (lengths - (x - sae.b_dec).norm(dim=1).detach()).square().mean()
    expected = ((x - recons).square().sum(1).mean() + 0.7 * D_IN * excess) / 2.5
    torch.testing.assert_close(found, expected)
    parameters = list(sae.parameters())
    for one, other in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_a_silent_token_has_a_length_of_zero_and_no_gradient_that_is_not_finite():
    sae, x = sae_and_inputs()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    step = Step(sae, sae.forward_pairs(x, training=True), x, 2.5, None)
    value = AFA(coefficient=1.0)(step)
    expected = D_IN * (x - sae.b_dec).square().sum(1).mean() / 2.5
    assert value.item() == pytest.approx(expected.item())
    assert step.forward.pairs.n_pairs == 0


def orthonormal(support=3, dtype=torch.float32, offset=1.5):
    """A dictionary of orthonormal directions, and sparse mixtures of them."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    sae = SAE(16, 16, NormMatching(), dtype=dtype)
    with torch.no_grad():
        sae.W_dec.copy_(basis)
        sae.W_enc.copy_(basis.T)
        sae.b_dec.fill_(offset)
    active = torch.rand(200, 16, generator=generator).argsort(1) < support
    size = 0.5 + torch.rand(200, 16, generator=generator)
    codes = (active * size).to(dtype)
    return sae, codes, codes @ sae.W_dec.detach() + offset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("support", [1, 3, 16])
def test_with_orthonormal_directions_the_true_support_is_found(support, dtype):
    sae, true, x = orthonormal(support, dtype)
    codes = sae.encode(x)
    assert torch.equal(codes.dense() > 0, true > 0)
    lengths = codes.dense().norm(dim=1)
    torch.testing.assert_close(lengths, (x - sae.b_dec).norm(dim=1).detach())


def test_a_longer_activation_keeps_no_fewer_latents_of_the_same_code():
    z = torch.rand(1, 40, generator=torch.Generator().manual_seed(0))
    counts = [int((NormMatching(norm=norm)(z) > 0).sum()) for norm in (0.1, 0.5, 1.0, 2.0, 9.0)]
    assert counts == sorted(counts)
    assert counts[0] == 1 and counts[-1] == 40  # never none, at most all


def test_moving_length_between_latents_and_directions_changes_nothing():
    sae, x = sae_and_inputs(spread=0.33)
    before = sae.encode(x)
    factor = torch.linspace(0.25, 4, D_SAE, dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec.mul_(factor.unsqueeze(1))
        sae.W_enc.div_(factor)
        sae.b_enc.div_(factor)
    after = sae.encode(x)
    assert torch.equal(after.indices, before.indices)
    torch.testing.assert_close(after.values * factor[after.indices], before.values)


def test_shifting_data_and_bias_together_changes_nothing():
    sae, x = sae_and_inputs(spread=0.33)
    before = sae.encode(x)
    with torch.no_grad():
        sae.b_dec.add_(3.0)
    after = sae.encode(x + 3.0)
    assert torch.equal(after.indices, before.indices)


def test_what_is_kept_does_not_depend_on_the_batch_or_on_chunks(monkeypatch, tmp_path):
    sae, x = sae_and_inputs(torch.float32, spread=0.33)
    sae.normalization = Normalization(scale_in=4.0, scale_out=4.0)
    whole = sae.encode(x)
    monkeypatch.setattr("saelab.kernels.encoding.MAX_CHUNK_ROWS", 16)
    assert torch.equal(sae.encode(x).indices, whole.indices)
    assert torch.equal(sae.encode(x[9:10]).indices, whole[9].indices)
    assert torch.equal(sae.encode(x.flip(0))[TOKENS - 1].indices, whole[0].indices)
    # The stored weights have the scales inside them: lengths change units, counts do not.
    sae.save(tmp_path / "sae")
    assert torch.equal(SAE.load(tmp_path / "sae").encode(x).dense(), whole.dense())
    assert torch.equal(sae.folded().encode(x).dense(), whole.dense())


def test_pre_activations_alone_do_not_say_how_many_to_keep():
    gate = NormMatching()
    with pytest.raises(ConfigError, match="the length of 5 inputs and knows 0"):
        gate(torch.randn(5, 8))
    with pytest.raises(ConfigError, match="must be positive"):
        NormMatching(norm=0.0)
    with pytest.raises(ConfigError, match="leave the term out"):
        AFA(coefficient=0.0)
    names = [term.name for term in default_terms(SAE(4, 8, NormMatching()))]
    assert names == ["reconstruction", "afa", "auxk"]


class TestNormGeometry:
    def test_by_hand(self):
        sae, _ = sae_and_inputs(spread=0.33)
        sae.normalization = Normalization(scale_in=2.0, scale_out=2.0)
        x = torch.randn(9, D_IN, dtype=torch.float64)
        found, codes = norm_geometry(sae, x), sae.encode(x).dense()
        with torch.no_grad():
            parts = codes * sae.W_dec.norm(dim=1) / 2
            v = torch.cat([parts, (sae.b_dec.norm() / 2).expand(9, 1)], dim=1)
        gap = (x.square().sum(1) - v.square().sum(1)).abs() / v.square().sum(1)
        torch.testing.assert_close(found.code_norms, v.norm(dim=1))
        torch.testing.assert_close(found.input_norms, x.norm(dim=1))
        torch.testing.assert_close(found.epsilon, gap / (D_SAE - 1))
        torch.testing.assert_close(found.epsilon_active, gap / ((v > 0).sum(1) - 1).clamp(min=1))
        assert "times as long as its activation" in found.describe()

    def test_it_is_zero_for_an_orthonormal_dictionary(self):
        sae, _, x = orthonormal(offset=0.0)
        found = norm_geometry(sae, x)
        assert isinstance(found, NormGeometry)
        assert found.epsilon.max() < 1e-6 and found.epsilon_active.max() < 1e-6

    def test_no_dictionary_with_exact_reconstructions_has_a_smaller_epsilon(self):
        # A code that reconstructs exactly: then the bound must be below the largest |cosine|.
        generator = torch.Generator().manual_seed(1)
        directions = torch.nn.functional.normalize(torch.randn(40, 12, generator=generator), dim=1)
        latents = torch.rand(300, 40, generator=generator)
        latents *= torch.rand(300, 40, generator=generator).argsort(1) < 4
        x = (latents @ directions).double()
        squares = latents.double().square().sum(1)
        gap = (x.square().sum(1) - squares).abs()
        assert (gap <= length_gap_bound(latents, directions) + 1e-6).all()
        assert (gap / squares / 3 <= largest_cosine(directions) + 1e-6).all()
        assert (gap / squares / 3).max() > 0.1 * largest_cosine(directions)

    def test_the_bound_is_reached_by_equal_latents_on_one_pair(self):
        directions = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        latents = torch.tensor([[2.0, 2.0]])
        gap = (latents @ directions).square().sum() - latents.square().sum()
        assert length_gap_bound(latents, directions).item() == pytest.approx(gap.item())

    def test_the_largest_cosine_is_that_of_the_whole_matrix(self):
        directions = torch.randn(70, 9, generator=torch.Generator().manual_seed(0))
        unit = torch.nn.functional.normalize(directions.double(), dim=1)
        expected = ((unit @ unit.T).abs() - torch.eye(70)).max().item()
        assert largest_cosine(directions, chunk=16) == pytest.approx(expected)

    def test_a_transcoder_is_refused(self):
        sae = SAE(4, 8, NormMatching(), hook="a", hook_out="b")
        with pytest.raises(ShapeError, match=r"writes b, not a\. Use an autoencoder"):
            norm_geometry(sae, torch.randn(3, 4))

    def test_the_figure_shows_every_token_the_equal_line_and_the_bands(self):
        drawn = zf_figure([1.0, 2.0, 4.0], [1.1, 1.9, 3.0]).to_dict()
        *bands, line, points = drawn["data"]
        notes = [note["text"] for note in drawn["layout"]["annotations"]]
        assert notes == ["1", "0.5", "0.25"]
        assert line["x"] == line["y"]
        assert points["x"] == [1.0, 2.0, 4.0] and points["y"] == [1.1, 1.9, 3.0]
        right = line["x"][1]
        for band, one in zip((1.0, 0.5, 0.25), bands, strict=True):
            assert one["y"][1] == pytest.approx(right / (1 + band) ** 0.5)
        assert bands[1]["y"][2] == pytest.approx(right / 0.5**0.5)
        with pytest.raises(ShapeError, match="one code per activation"):
            zf_figure([1.0], [])


@pytest.mark.slow
def test_nearly_orthogonal_planted_atoms_are_found():
    planted = PlantedAtoms(d=128, n_atoms=64, l0=4.0, seed=11)
    sae = SAE(128, 96, NormMatching())
    store = ActivationStore.from_tensor(planted.sample(16_384, seed=1))
    config = TrainConfig(tokens=256 * 1200, batch_size=256, lr=3e-3, warmup=0.0, center="mean")
    train(sae, store, config, terms=[Reconstruction(), AFA(), AuxK()])
    x = planted.sample(2000, seed=2)
    codes = sae.encode(x)
    assert recovery(planted.atoms, sae.W_dec.detach()) > 0.6
    # Above the 4 true ones, as published: matching lengths does not identify the support.
    assert codes.l0().float().mean() < 25
    assert (x - sae.decode(codes)).square().sum() < 0.1 * (x - x.mean(0)).square().sum()
