import pytest
import torch

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry.nulls import AgainstNull, checked_directions, shuffled_coordinates


def test_effect_size_and_significance_are_different_numbers():
    near = AgainstNull(value=0.06, draws=(0.0, 0.0001, -0.0001), null="shuffled")
    assert near.excess == pytest.approx(0.06)
    assert near.z == pytest.approx(600)
    assert near.p == 0.25  # three draws cannot say less
    same = AgainstNull(value=0.0, draws=(0.0, 0.0), null="shuffled")
    assert (same.p, same.z, same.excess) == (1.0, None, 0.0)
    assert near.to_json()["null_mean"] == pytest.approx(0)


def test_a_null_without_draws_is_refused():
    with pytest.raises(ConfigError, match="The null 'shuffled' has no draws"):
        AgainstNull(value=1.0, draws=(), null="shuffled")


def test_directions_that_point_nowhere_are_refused():
    bad = torch.eye(3)
    bad[1] = 0
    with pytest.raises(DataError, match=r"1 of 3 directions are zero, NaN or infinite, .* row 1"):
        checked_directions(bad)
    with pytest.raises(ShapeError, match="At least 2 directions are needed; there are 1"):
        checked_directions(torch.ones(1, 3))


def test_shuffling_coordinates_keeps_the_cloud_and_loses_its_place():
    x = torch.nn.functional.normalize(torch.randn(50, 40), dim=1)
    moved = shuffled_coordinates(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved @ moved.T, x @ x.T)
    assert (moved * x).sum(1).abs().mean() < 0.3
