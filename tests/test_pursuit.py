import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.errors import ConfigError, ShapeError
from saelab.kernels import pursuit as kernel
from saelab.kernels.pursuit import line_search, matching_steps, merged, pursue
from saelab.normalization import Normalization
from saelab.pursuit import gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit
from saelab.sae import SAE

METHODS = pytest.mark.parametrize(
    "find", [matching_pursuit, gradient_pursuit, orthogonal_matching_pursuit]
)
SIGNED = pytest.mark.parametrize("signed", [False, True])


def dictionary(d=12, n=30, signed=False, seed=0, dtype=torch.float64):
    """Directions of different lengths, a bias, a scale: nothing a pursuit could forget unseen."""
    scale = Normalization(scale_in=0.5, scale_out=0.5)
    sae = SAE(d, n, AbsTopK(3) if signed else TopK(3), normalization=scale, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        sae.W_dec.mul_(0.5 + torch.rand(n, 1, generator=generator))
        sae.b_dec.copy_(torch.randn(d, generator=generator))
    return sae


def activations(rows=40, d=12, seed=3):
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)).double()


def errors(sae, x, codes):
    return (x - sae.decode(codes)).norm(dim=1)


@METHODS
@SIGNED
def test_codes_have_at_most_l0_latents_of_the_dictionarys_sign(find, signed):
    codes = find(dictionary(signed=signed), activations(), 5)
    assert codes.l0().max() <= 5 and codes.l0().float().mean() > 3
    assert bool((codes.values < 0).any()) == signed
    assert (codes.values != 0).all()
    latent_steps = codes.indices.diff()[codes.tokens.diff() == 0]
    assert (latent_steps > 0).all()


@METHODS
@SIGNED
def test_one_choice_is_the_best_single_latent_and_the_same_for_all_methods(find, signed):
    sae, x = dictionary(signed=signed), activations()
    target = x * 0.5 - sae.b_dec
    found = errors(sae, x, find(sae, x, 1))
    products = target @ sae.W_dec.T
    values = products / sae.W_dec.square().sum(1)
    values = values if signed else values.clamp_min(0)
    alone = target.unsqueeze(1) - values.unsqueeze(2) * sae.W_dec
    torch.testing.assert_close(found, alone.norm(dim=2).amin(1) / 0.5)


@METHODS
@SIGNED
def test_more_choices_never_reconstruct_worse(find, signed):
    sae, x = dictionary(signed=signed), activations()
    if find is gradient_pursuit and not signed:
        pytest.skip("the clip may lengthen the residual; the next test looks before it")
    before = errors(sae, x, find(sae, x, 1))
    for l0 in range(2, 10):
        after = errors(sae, x, find(sae, x, l0))
        assert (after <= before + 1e-5).all()
        before = after


def test_a_gradient_step_never_lengthens_the_residual_before_the_clip():
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    selected = torch.randn(50, 4, 8, generator=generator, dtype=torch.float64)
    selected[:7] = 0  # nothing selected: no step
    gradient = torch.einsum("tkw,tw->tk", selected, residual)
    step = line_search(residual, gradient, selected)
    moved = residual - torch.einsum("tk,tkw->tw", gradient * step, selected)
    assert (moved.norm(dim=1) <= residual.norm(dim=1) + 1e-12).all()
    assert (step[:7] == 0).all() and (step[7:] > 0).all()
    for other in (0.9, 1.1):  # and it is the best step
        worse = residual - torch.einsum("tk,tkw->tw", gradient * step * other, selected)
        assert (worse.norm(dim=1)[7:] > moved.norm(dim=1)[7:]).all()


def test_orthogonal_pursuit_leaves_nothing_of_its_support_in_the_residual():
    sae, x = dictionary(signed=True), activations()
    codes = orthogonal_matching_pursuit(sae, x, 4)
    left = (x - sae.decode(codes)) @ sae.W_dec.T
    assert left[codes.tokens, codes.indices].abs().max() < 1e-4
    sae = dictionary(signed=False)
    codes = orthogonal_matching_pursuit(sae, x, 4)
    left = (x - sae.decode(codes)) @ sae.W_dec.T
    assert left[codes.tokens, codes.indices].abs().max() < 0.05  # constrained, by sweeps


@METHODS
def test_the_support_of_a_planted_code_is_recovered_where_atoms_are_incoherent(find):
    sae = SAE(256, 300, TopK(3), seed=1)  # cosines about 1/16
    generator = torch.Generator().manual_seed(2)
    truth = torch.zeros(100, 300)
    places = torch.rand(100, 300, generator=generator).topk(4).indices
    truth.scatter_(1, places, 1 + torch.rand(100, 4, generator=generator))
    x = truth @ sae.W_dec.detach()
    codes = find(sae, x, 4)
    assert torch.equal(codes.dense() > 0, truth > 0)
    loose = {matching_pursuit: 0.5, gradient_pursuit: 0.5, orthogonal_matching_pursuit: 1e-3}
    torch.testing.assert_close(codes.dense(), truth, atol=loose[find], rtol=0)


@METHODS
@SIGNED
def test_permuting_latents_permutes_the_codes(find, signed):
    sae, x = dictionary(signed=signed), activations()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    expected = find(sae, x, 5).dense()[:, order]
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec[order])
    torch.testing.assert_close(find(sae, x, 5).dense(), expected)


@METHODS
def test_scaling_the_data_scales_the_codes_and_scaling_a_direction_divides_its_latent(find):
    sae, x = dictionary(), activations()
    before = find(sae, x, 5).dense()
    with torch.no_grad():
        sae.b_dec.mul_(3)
    torch.testing.assert_close(find(sae, 3 * x, 5).dense(), 3 * before)
    with torch.no_grad():
        sae.b_dec.div_(3)
        sae.W_dec[7] *= 4
    expected = before.clone()
    expected[:, 7] /= 4
    torch.testing.assert_close(find(sae, x, 5).dense(), expected)


@METHODS
@SIGNED
def test_codes_do_not_depend_on_the_batch_or_on_the_chunks(find, signed, monkeypatch):
    sae, x = dictionary(signed=signed), activations()
    whole = find(sae, x, 5).dense()
    for row in (0, 17):
        torch.testing.assert_close(find(sae, x[row], 5).dense(), whole[row : row + 1])
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 3 * 8 * 60)  # three rows a chunk, no Gram matrix
    torch.testing.assert_close(find(sae, x, 5).dense(), whole)
    assert find(sae, x.reshape(2, 20, 12), 5).n_tokens == 40
    assert find(sae, x[:0], 5).n_tokens == 0


def test_pursuit_reconstructs_better_than_the_encoder_at_the_same_l0():
    sae, x = dictionary(), activations(200)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
    own = errors(sae, x, sae.encode(x)).mean()
    found = [
        errors(sae, x, find(sae, x, 3)).mean()
        for find in (matching_pursuit, gradient_pursuit, orthogonal_matching_pursuit)
    ]
    assert found[2] < found[1] < found[0] < 0.95 * own


def test_a_latent_chosen_twice_counts_once():
    # 120 degrees apart, x has product 1 with both. Latent 0 takes 1, which leaves 1 + 1/2 for
    # latent 1, which leaves 3/4 for latent 0 again.
    atoms = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5]])
    indices, weights = matching_steps(torch.ones(1, 2), atoms, 3)
    assert indices.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.5, 0.75]]))
    torch.testing.assert_close(merged(indices, weights, 2).dense(), torch.tensor([[1.75, 1.5]]))


def test_merged_by_hand():
    indices = torch.tensor([[2, 0, 2], [1, 1, 1]])
    weights = torch.tensor([[1.0, 5.0, 2.0], [1.0, -1.0, 0.0]])
    codes = merged(indices, weights, 3)
    assert codes.dense().tolist() == [[5.0, 0.0, 3.0], [0.0, 0.0, 0.0]]
    assert codes.n_pairs == 2  # what cancels is dropped


def test_a_token_with_nothing_positive_left_has_no_more_latents():
    atoms = torch.eye(3)
    x = torch.tensor([[2.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    for method in ("matching", "gradient", "orthogonal"):
        assert pursue(x, atoms, 3, method).dense().tolist() == [[2.0, 0, 0], [0, 0, 0]]
    assert torch.equal(pursue(x, atoms, 3, "matching", signed=True).dense(), x)


@METHODS
def test_a_direction_of_length_zero_is_never_used(find):
    sae, x = dictionary(), activations()
    with torch.no_grad():
        sae.W_dec[3] = 0
    codes = find(sae, x, 5)
    assert 3 not in codes.indices and torch.isfinite(codes.values).all()


@METHODS
def test_what_cannot_be_pursued_is_refused(find):
    sae = dictionary()
    with pytest.raises(ConfigError, match="l0=31 needs 1 <= l0 <= 30"):
        find(sae, activations(), 31)
    with pytest.raises(ShapeError, match=r"d_out=12; got shape \(2, 11\)"):
        find(sae, torch.zeros(2, 11), 3)
    with pytest.raises(ConfigError, match="skip"):
        find(SAE(4, 8, TopK(2), skip=True), torch.zeros(2, 4), 3)
