"""Spectra, entropies and dimensions of clouds whose answers are known."""

import math

import pytest
import torch

from saelab.errors import ConfigError, DataError
from saelab.geometry import (
    clustering_entropy,
    galaxy,
    matched_gaussian,
    nearest_neighbor_entropy,
    oriented,
    power_law,
)


def test_a_power_law_is_recovered_and_its_range_matters():
    ranks = torch.arange(1, 301).double()
    law = power_law(3 * ranks**-0.47)
    assert law.slope == pytest.approx(-0.47)
    assert law.r2 == pytest.approx(1)
    assert law.ranks == (10, 150)
    assert law.volume == pytest.approx(float((3 * ranks**-0.47)[9:150].log().sum()))
    bent = torch.where(ranks < 50, ranks**-0.2, ranks**-1.0)
    assert power_law(bent, (1, 40)).slope == pytest.approx(-0.2)
    assert power_law(bent, (60, 200)).slope == pytest.approx(-1.0)
    assert power_law(torch.ones(200)).slope == pytest.approx(0, abs=1e-12)


def test_a_range_outside_the_spectrum_is_refused():
    with pytest.raises(ConfigError, match=r"ranks=\(10, 150\) .* within 1 to 40"):
        power_law(torch.ones(40))
    with pytest.raises(DataError, match="is zero: the cloud has fewer dimensions"):
        power_law(torch.cat([torch.ones(20), torch.zeros(200)]))


@pytest.mark.parametrize("d", [2, 5, 10])
def test_the_entropy_of_a_gaussian_is_right_in_few_dimensions(d):
    points = torch.randn(4000, d, dtype=torch.float64)
    exact = d / 2 * math.log(2 * math.pi * math.e)
    assert nearest_neighbor_entropy(points) == pytest.approx(exact, abs=0.1)


def test_the_entropy_of_a_cube_is_zero_and_scaling_adds_its_logarithm():
    cube = torch.rand(4000, 3, dtype=torch.float64)
    own = nearest_neighbor_entropy(cube)
    assert own == pytest.approx(0, abs=0.1)
    assert nearest_neighbor_entropy(5 * cube + 7) == pytest.approx(own + 3 * math.log(5), abs=1e-6)


def test_a_bootstrap_sample_has_no_entropy():
    points = torch.randn(500, 4)
    again = points[torch.randint(500, (500,))]
    with pytest.raises(DataError, match="Draw points without replacement"):
        nearest_neighbor_entropy(again)


def clusters(n, width, d=100, k=40, seed=1):
    """k clusters and the exact entropy of their Gaussian less theirs, if they do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator, dtype=torch.float64)
    which = torch.arange(n) % k
    points = centers[which] + width * torch.randn(n, d, generator=generator, dtype=torch.float64)
    covariance = torch.cov(centers.T, correction=0) + width**2 * torch.eye(d, dtype=torch.float64)
    gap = 0.5 * float(torch.logdet(covariance)) - d * math.log(width) - math.log(k)
    return points, gap


@pytest.mark.parametrize("n", [800, 2000])
def test_clusters_in_a_hundred_dimensions_are_seen_whatever_the_number_of_points(n):
    # Wide clusters leave the covariance nearly round: the difference is the true one.
    points, gap = clusters(n, width=1.0)
    found = clustering_entropy(points, n_null=3)
    assert gap == pytest.approx(18.3, abs=0.1)
    assert found.value == pytest.approx(gap, abs=2)
    assert max(map(abs, found.draws)) < 2


def test_a_covariance_far_from_round_makes_the_difference_too_large():
    # Narrow clusters: the Gaussian's bias exceeds theirs. The number still is no accident of n.
    points, gap = clusters(2000, width=0.32)
    some = clustering_entropy(points, n_null=2, max_points=800).value
    every = clustering_entropy(points, n_null=2).value
    assert gap == pytest.approx(54.8, abs=0.1)
    assert every == pytest.approx(some, abs=3)
    assert every > gap + 20


def test_a_gaussian_cloud_has_no_clustering_entropy():
    points = torch.randn(1500, 60) @ torch.randn(60, 60)
    found = clustering_entropy(points, n_null=4)
    assert abs(found.value) < 1.5
    assert found.p > 0.1


def test_the_matched_gaussian_has_the_mean_and_the_covariance():
    points = torch.rand(50, 4) @ torch.randn(4, 4) + 3
    drawn = matched_gaussian(points, 40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), points.mean(0), atol=0.03, rtol=0)
    own, other = torch.cov(points.T, correction=0), torch.cov(drawn.T)
    torch.testing.assert_close(other, own, atol=0.03, rtol=0.05)


def test_random_directions_have_a_flat_spectrum_and_a_planted_one_is_steep():
    flat = galaxy(torch.randn(800, 60), n_null=3, ranks=(5, 50), n_dimensions=20)
    assert abs(flat.steepness.excess) < 0.05
    assert abs(flat.clustering.excess) < 1
    scale = torch.arange(1, 61) ** -0.5
    steep = galaxy(torch.randn(800, 60) * scale, n_null=3, ranks=(5, 50), n_dimensions=20)
    # Eigenvalues go as rank^-1, a little less after rows are given length 1.
    assert -steep.law.slope == pytest.approx(1, abs=0.2)
    assert steep.steepness.excess > 0.6
    assert steep.dimensions.participation < 0.5 * steep.null_dimensions.participation
    assert "R2" in str(steep)
    assert steep.to_json()["steepness"]["null"] == "random directions"


def test_rotating_scaling_and_reordering_directions_keep_the_spectrum():
    directions = torch.randn(300, 24) * torch.arange(1, 25) ** -0.5
    rotation = torch.linalg.qr(torch.randn(24, 24)).Q
    lengths = 1 + torch.rand(300, 1)
    moved = (lengths * directions @ rotation)[torch.randperm(300)]
    one = galaxy(directions, n_null=2)
    other = galaxy(moved, n_null=2)
    assert one.spectrum == pytest.approx(other.spectrum, abs=1e-6)
    assert one.dimensions.effective_rank == pytest.approx(other.dimensions.effective_rank, abs=1e-4)


def test_an_orientation_undoes_sign_flips():
    directions, mean = torch.randn(40, 8), torch.randn(40)
    flips = torch.where(torch.rand(40) < 0.5, -1.0, 1.0)
    torch.testing.assert_close(
        oriented(flips[:, None] * directions, flips * mean), oriented(directions, mean)
    )


def test_the_four_dimensions_agree_where_eigenvalues_do():
    basis = torch.linalg.qr(torch.randn(40, 6)).Q.T
    cloud = galaxy(torch.randn(3000, 6) @ basis, n_null=2, ranks=(1, 5))
    for name in ("n_99", "effective_rank", "spectral_rank", "participation"):
        assert getattr(cloud.dimensions, name) == pytest.approx(6, abs=0.1)
