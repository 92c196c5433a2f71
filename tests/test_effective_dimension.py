import pytest
import torch

from saelab.effective_dimension import (
    covariance,
    dimensions_of,
    effective_dimension,
    effective_dimensions,
    site_dimensions,
)
from saelab.errors import ConfigError, DataError
from saelab.store import ActivationStore


def all_four(found):
    return (found.n_99, found.effective_rank, found.spectral_rank, found.participation)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_variances_in_r_directions_give_r_by_every_definition(rank):
    basis = torch.linalg.qr(torch.randn(8, 8))[0][:rank]
    signs = torch.tensor(
        [[1.0 if place == i else 0.0 for i in range(rank)] for place in range(rank)]
    )
    x = torch.cat([signs, -signs]) @ basis + 5.0  # mean 5, equal variance in each direction
    store = ActivationStore.from_tensor(x)
    assert all_four(effective_dimension(store, remove=0).plain) == pytest.approx((rank,) * 4)


def test_the_definitions_by_hand():
    # Standard deviations 3 and 1: shares of sigma 3/4, 1/4; of lambda 9/10, 1/10.
    found = dimensions_of(torch.tensor([1.0, 9.0]))
    assert found.n_99 == 2
    assert found.effective_rank == pytest.approx(4 / 3**0.75, abs=1e-6)
    assert found.spectral_rank == pytest.approx(10 / 9**0.9, abs=1e-6)
    assert found.participation == pytest.approx(100 / 82, abs=1e-6)


def test_the_published_spectrum_where_they_disagree():
    """sigma_i ~ i^-1/2 in 768 dimensions: 0.93, 0.79, 0.20 and 0.04 of the width."""
    found = dimensions_of(1 / torch.arange(1, 769))
    assert [round(value / 768, 2) for value in all_four(found)] == [0.93, 0.79, 0.20, 0.04]


def test_exactly_99_percent_is_enough():
    assert dimensions_of(torch.tensor([0.99, 0.01])).n_99 == 1
    assert dimensions_of(torch.tensor([0.98, 0.02])).n_99 == 2


def test_a_rotation_and_a_shift_change_nothing_but_the_standardized_numbers():
    x = torch.randn(500, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1])
    turned = x @ torch.linalg.qr(torch.randn(6, 6))[0] + 100.0
    one, other = (
        effective_dimension(ActivationStore.from_tensor(y), remove=0) for y in (x, turned)
    )
    assert all_four(other.plain) == pytest.approx(all_four(one.plain), rel=1e-4)


def test_a_rogue_dimension_collapses_the_plain_numbers_and_not_the_other_two():
    x = torch.randn(4000, 20)
    x[:, 7] *= 1000
    found = effective_dimension(ActivationStore.from_tensor(x), remove=1)
    assert all_four(found.plain)[0] == 1 and max(all_four(found.plain)) < 1.3
    assert found.removed == [7] and found.top_share > 0.99
    assert min(all_four(found.standardized)) > 19
    assert min(all_four(found.trimmed)) > 18


def test_batches_do_not_matter_and_a_far_origin_loses_nothing():
    x = torch.randn(1000, 5).double() + 1e6
    whole, n = covariance([x])
    parts, m = covariance(x.split(37))
    assert n == m == 1000
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole, torch.cov((x - 1e6).T, correction=0), rtol=1e-6, atol=1e-6)


def test_a_constant_dimension_counts_for_nothing():
    x = torch.randn(3000, 4)
    x[:, 2] = 7.0
    found = effective_dimension(ActivationStore.from_tensor(x), remove=0)
    assert found.plain.n_99 == 3 and found.standardized.n_99 == 3


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="do not vary"):
        effective_dimension(ActivationStore.from_tensor(torch.ones(10, 3)))
    with pytest.raises(DataError, match="at least two"):
        covariance([torch.ones(1, 3)])
    with pytest.raises(DataError, match="NaN"):
        covariance([torch.full((3, 2), float("nan"))])
    with pytest.raises(ConfigError, match="remove=3"):
        site_dimensions(torch.eye(3), 10, remove=3)


def test_one_pass_over_all_hook_points_measures_what_one_by_one_does():
    x = {"a": torch.randn(9000, 5) * 3 + 7, "b": torch.randn(9000, 3)}
    store, seen = ActivationStore.from_tensor(x), []
    found = effective_dimensions(
        store, max_tokens=8500, remove=1, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen[-1] == (8500, 8500)
    for hook, site in found.items():
        assert site == effective_dimension(store, hook, max_tokens=8500, remove=1)
