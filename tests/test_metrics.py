import pytest
import torch

from saelab import metrics
from saelab.errors import DataError, ShapeError
from saelab.metrics import Reconstruction, ReconstructionMetrics, density_histogram
from saelab.sparse_codes import SparseCodes


def random_set(n=203, d=7, d_sae=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + 3
    recons = x + 0.5 * torch.randn(n, d, generator=generator)
    dense = torch.randn(n, d_sae, generator=generator)
    dense = dense * (torch.rand(n, d_sae, generator=generator) < 0.2)
    dense[:, 4] = 0
    return x, recons, SparseCodes.from_dense(dense)


def measured(x, recons, codes=None, sizes=None):
    result = ReconstructionMetrics()
    start = 0
    for size in sizes or [len(x)]:
        part = slice(start, start + size)
        result.update(x[part], recons[part], None if codes is None else codes[part])
        start += size
    return result.result()


def test_by_hand():
    # mean (1, 0): spread 4 * (1 + 4) = 20; errors (1, 0) on the first two rows: 2
    x = torch.tensor([[0.0, 2.0], [2.0, 2.0], [0.0, -2.0], [2.0, -2.0]])
    recons = x.clone()
    recons[:2, 0] += 1
    found = measured(x, recons)
    assert found.fvu == 2 / 20
    assert found.explained_variance == 1 - 2 / 20
    assert found.explained_variance_uncentered == 1 - 2 / (4 + 8 + 4 + 8)
    assert found.mse == 0.5
    # x.recons: 4, 6+4, 4, 8; |recons|^2: 5, 9+4, 4, 8
    assert found.relative_bias == pytest.approx((5 + 13 + 4 + 8) / (4 + 10 + 4 + 8))
    cosines = [4 / (2 * 5**0.5), 10 / (8**0.5 * 13**0.5), 1, 1]
    assert found.cosine == pytest.approx(sum(cosines) / 4)
    assert found.l2_ratio == pytest.approx((5**0.5 / 2 + 13**0.5 / 8**0.5 + 2) / 4)


def test_a_perfect_copy_misses_nothing():
    x, _, _ = random_set()
    found = measured(x, x)
    assert (found.fvu, found.mse) == (0, 0)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.relative_bias == pytest.approx(1, abs=1e-12)
    assert found.l2_ratio == pytest.approx(1, abs=1e-12)


def test_the_mean_has_an_fvu_of_one_but_flatters_the_uncentered_number():
    x, _, _ = random_set()
    x = x + 10
    recons = x.double().mean(0).expand(len(x), -1)
    found = measured(x, recons)
    assert found.fvu == pytest.approx(1, abs=1e-12)
    assert (found.explained_variance_uncentered or 0) > 0.98


def test_zeros_have_an_fvu_above_one_on_data_away_from_the_origin():
    x, _, _ = random_set()
    assert (measured(x, torch.zeros_like(x)).fvu or 0) > 1


def test_fvu_does_not_change_when_a_constant_is_added_to_both():
    x, recons, _ = random_set()
    x, recons = x.double(), recons.double()
    shift = torch.linspace(-900, 1100, x.shape[1], dtype=torch.float64)
    assert metrics.fvu(x + shift, recons + shift) == pytest.approx(
        metrics.fvu(x, recons), rel=1e-11
    )


@pytest.mark.parametrize("c", [0.8, 1.0, 1.3])
def test_relative_bias_of_a_scaled_copy_is_the_scale(c):
    x, _, _ = random_set()
    assert metrics.relative_bias(x.double(), c * x.double()) == pytest.approx(c, rel=1e-12)


SPLITS = [[203], [1] * 203, [100, 103], [3, 0, 197, 3], [202, 1]]


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: f"{len(sizes)}-batches")
def test_splitting_batches_differently_changes_no_number(sizes):
    x, recons, codes = random_set()
    x, recons = x + 1000, recons + 1000  # far from the origin, where naive sums lose digits
    whole, split = measured(x, recons, codes).to_json(), measured(x, recons, codes, sizes).to_json()
    for name, value in whole.items():
        if isinstance(value, float):
            assert split[name] == pytest.approx(value, rel=1e-12), name
        else:
            assert split[name] == value, name


def test_merging_accumulators_is_the_same_as_one_accumulator():
    x, recons, codes = random_set()
    parts = [ReconstructionMetrics() for _ in range(4)]
    for part, rows in zip(parts[1:], (slice(0, 40), slice(40, 41), slice(41, 203)), strict=True):
        part.update(x[rows], recons[rows], codes[rows])
    total = parts[0]
    for part in parts[1:]:
        total.merge(part)
    whole = measured(x, recons, codes)
    assert total.result().fvu == pytest.approx(whole.fvu, rel=1e-12)
    assert total.result().cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert total.result().firing_negative == whole.firing_negative
    assert total.result().l0_counts == whole.l0_counts


def test_sparsity_counts_both_signs_against_the_dense_matrix():
    x, recons, codes = random_set()
    dense = codes.dense()
    found = measured(x, recons, codes, [100, 103])
    assert found.firing_positive == (dense > 0).sum(0).tolist()
    assert found.firing_negative == (dense < 0).sum(0).tolist()
    assert torch.equal(found.density, (dense != 0).double().mean(0))
    assert found.l0 == (dense != 0).sum().item() / len(x)
    assert found.l1 == pytest.approx(dense.double().abs().sum().item() / len(x), rel=1e-12)
    assert (found.dead, found.dead_share) == (1, 1 / 11)
    l0 = (dense != 0).sum(1)
    assert found.l0_counts == torch.bincount(l0).tolist()
    for share, level in found.l0_quantiles.items():
        expected = torch.quantile(l0.double(), float(share), interpolation="higher").item()
        assert abs(level - expected) <= 1, share
    assert found.l0_quantiles["0"] == l0.min()
    assert found.l0_quantiles["1"] == l0.max()


def test_flipping_the_sign_of_a_latent_changes_only_which_tail_it_counts_in():
    x, recons, codes = random_set()
    flipped = SparseCodes.from_dense(codes.dense() * torch.tensor([-1.0] * 3 + [1.0] * 8))
    one, other = measured(x, recons, codes).to_json(), measured(x, recons, flipped).to_json()
    assert one.pop("firing_positive")[:3] == other.pop("firing_negative")[:3]
    assert one.pop("firing_negative")[:3] == other.pop("firing_positive")[:3]
    assert one == other


def test_without_codes_the_sparsity_numbers_are_none():
    x, recons, _ = random_set()
    found = measured(x, recons)
    assert (found.l0, found.dead, found.dead_share, found.l1) == (None,) * 4


def test_numbers_that_are_not_defined_are_none():
    x = torch.zeros(3, 2)
    found = measured(x, x)
    assert (found.fvu, found.relative_bias, found.cosine, found.l2_ratio) == (None,) * 4


def test_a_token_at_the_origin_has_no_direction():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    recons = torch.tensor([[9.0, 0.0], [2.0, 0.0]])
    found = measured(x, recons)
    assert (found.cosine, found.l2_ratio) == (1.0, 2.0)


def test_a_result_survives_json():
    found = measured(*random_set())
    assert Reconstruction.from_json(found.to_json()) == found


def test_the_density_histogram_counts_every_latent_that_fired_once():
    density = torch.tensor([0.0, 1e-4, 9e-4, 1.5e-3, 1.0])
    edges, counts = density_histogram(density, 10_000, bins_per_decade=1)
    assert edges == [-4, -3, -2, -1, 0]
    assert counts == [2, 1, 0, 1]


def test_nan_is_refused():
    metrics_ = ReconstructionMetrics()
    x = torch.ones(2, 2)
    with pytest.raises(DataError, match="NaN or infinite"):
        metrics_.update(x, x * float("nan"))


def test_a_batch_of_another_width_is_refused():
    found = ReconstructionMetrics()
    found.update(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ShapeError, match="3 wide; the batches before it were 2 wide"):
        found.update(torch.ones(2, 3), torch.ones(2, 3))


def test_codes_of_other_tokens_or_another_dictionary_are_refused():
    found = ReconstructionMetrics()
    codes = SparseCodes.from_dense(torch.ones(2, 4))
    found.update(torch.ones(2, 3), torch.ones(2, 3), codes)
    with pytest.raises(ShapeError, match="x has 1 tokens but the codes have 2"):
        found.update(torch.ones(1, 3), torch.ones(1, 3), codes)
    with pytest.raises(ShapeError, match="5 latents; the earlier ones had 4"):
        other = SparseCodes.from_dense(torch.ones(2, 5))
        found.update(torch.ones(2, 3), torch.ones(2, 3), other)


def test_no_tokens_is_an_error():
    with pytest.raises(DataError, match="No tokens to measure"):
        ReconstructionMetrics().result()
