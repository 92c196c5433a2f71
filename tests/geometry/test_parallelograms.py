"""Planted parallelograms come back with their corners; a Gaussian cloud has none beyond chance."""

import json

import pytest
import torch

from saelab.errors import ConfigError
from saelab.geometry.parallelograms import Parallelograms, parallelograms


def planted(n_pairs=4, n_other=200, d=48, seed=0):
    """Pairs that all differ by one vector and lie far from each other, and unrelated directions."""
    generator = torch.Generator().manual_seed(seed)
    offset = 0.5 * torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    starts = torch.nn.functional.normalize(torch.randn(n_pairs, d, generator=generator), dim=1)
    starts = starts - torch.outer(starts @ offset, offset) / offset.square().sum()
    others = torch.randn(n_other, d, generator=generator)
    pairs = torch.stack([starts, starts + offset], 1).flatten(0, 1)
    return torch.cat([pairs, others])


def test_planted_pairs_are_found_and_their_arrows_point_alike():
    found = parallelograms(planted(), n_best=2, n_null=2)
    for one in found.best:
        assert max(one.corners) < 8, "corners are those of the planted pairs"
        a, b, c, d = one.corners
        assert a // 2 == b // 2 and c // 2 == d // 2 and a // 2 != c // 2
        assert (b - a) == (d - c), "both arrows go from start to end, or both back"
        assert one.cosine > 0.9 and one.gap < 0.4
    corners = [corner for one in found.best for corner in one.corners]
    assert len(set(corners)) == len(corners)
    assert found.largest.excess > 0.2


def test_the_drawn_plane_keeps_lengths_and_turns_both_arrows_to_the_right():
    directions = planted()
    one = parallelograms(directions, n_best=1, n_null=1).best[0]
    a, b, c, d = torch.tensor(one.places)
    assert float((b - a)[0]) > 0 and float((d - c)[0]) > 0
    unit = torch.nn.functional.normalize(directions, dim=1)
    corners = [unit[corner] for corner in one.corners]
    true = (corners[1] - corners[0]).norm()
    assert one.plane > 0.9, "a parallelogram is flat"
    torch.testing.assert_close((b - a).norm(), true, rtol=0.1, atol=0.0)


def test_a_gaussian_cloud_is_no_better_than_its_null():
    cloud = torch.randn(300, 24, generator=torch.Generator().manual_seed(3))
    found = parallelograms(cloud, n_null=4)
    assert abs(found.typical.excess) < 0.02
    assert abs(found.largest.excess) < 0.12
    assert sum(found.counts) == found.n_differences
    assert sum(found.null_counts) == pytest.approx(found.n_differences, rel=0.1)


def test_what_is_saved_is_what_was_found():
    found = parallelograms(planted(), n_null=1)
    again = Parallelograms.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        parallelograms(torch.randn(9, 3), n_best=0)
