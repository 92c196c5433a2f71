"""Counts equal the dense ones; planted lobes come back; geometry without them gives nothing."""

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from sklearn.metrics import adjusted_mutual_info_score

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry import (
    AFFINITIES,
    ChunkCounts,
    affinity,
    agreement,
    angular_clusters,
    chunks_of,
    dominant_lobes,
    lobe_prediction,
    spatial_modularity,
    spectral_clusters,
)
from saelab.sparse_codes import SparseCodes


def planted(n_lobes=3, per=30, n_chunks=240, chunk=4, d=32, follow=True, signed=False):
    """Chunks are of one lobe each; directions of a lobe share a component, or do not."""
    generator = torch.Generator().manual_seed(5)
    lobes = torch.arange(n_lobes).repeat(per)
    topic = torch.randint(n_lobes, (n_chunks,), generator=generator).repeat_interleave(chunk)
    chance = torch.where(topic[:, None] == lobes[None, :], 0.12, 0.01)
    on = torch.rand(chance.shape, generator=generator) < chance
    values = on * (1 + torch.rand(chance.shape, generator=generator))
    if signed:
        values *= torch.where(torch.rand(values.shape, generator=generator) < 0.5, -1, 1)
    centers = torch.randn(n_lobes, d, generator=generator)
    noise = torch.randn(len(lobes), d, generator=generator)
    directions = noise + (centers[lobes] if follow else 0)
    codes = SparseCodes.from_dense(values)
    return ChunkCounts.of(codes, torch.arange(len(values)) // chunk), directions, lobes, values


def test_counts_equal_dense_products():
    counts, _, _, values = planted()
    occurs = (values != 0).reshape(240, 4, -1).any(1).long()
    both = occurs.T @ occurs
    np.testing.assert_array_equal(counts.counts, both.diagonal().numpy())
    np.testing.assert_array_equal(counts.together.toarray(), both.fill_diagonal_(0).numpy())


def test_a_bar_on_activation_is_on_its_size():
    _, _, _, values = planted(signed=True)
    chunks = torch.arange(len(values)) // 4
    some = ChunkCounts.of(SparseCodes.from_dense(values), chunks, above=1.5)
    same = ChunkCounts.of(SparseCodes.from_dense(values.abs()), chunks, above=1.5)
    expected = (values.abs() > 1.5).reshape(240, 4, -1).any(1).sum(0)
    np.testing.assert_array_equal(some.counts, expected.numpy())
    assert (some.together != same.together).nnz == 0


def test_chunks_end_with_their_row_and_what_is_left_over_is_dropped():
    rows = torch.tensor([4, 4, 4, 4, 4, 9, 9, 1])
    assert chunks_of(rows, 2).tolist() == [0, 0, 1, 1, -1, 2, 2, -1]
    assert chunks_of(rows, 5).tolist() == [0] * 5 + [-1] * 3
    codes = SparseCodes.from_dense(torch.eye(8))
    counts = ChunkCounts.of(codes, chunks_of(rows, 2))
    assert counts.counts.tolist() == [1, 1, 1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("kind", AFFINITIES)
def test_every_affinity_equals_its_dense_formula(kind):
    counts, *_ = planted(n_chunks=40)
    counts = counts.of_latents(counts.between(1))
    n, n_i = counts.n_chunks, counts.counts.astype(float)
    both = counts.together.toarray().astype(float)
    i, j = n_i[:, None], n_i[None, :]
    expected = {
        "phi": (n * both - i * j) / np.sqrt(i * (n - i) * j * (n - j)) + 1,
        "jaccard": both / (i + j - both),
        "dice": 2 * both / (i + j),
        "overlap": both / np.minimum(i, j),
        "hypergeometric": -hypergeom.logsf(both - 1, n, i, j),
    }[kind]
    np.fill_diagonal(expected, 0)
    found = affinity(counts, kind)
    np.testing.assert_allclose(found.dense().numpy(), expected, atol=1e-9)
    v = np.random.default_rng(0).standard_normal((len(found), 3))
    np.testing.assert_allclose(found.times(v), expected @ v, atol=1e-9)
    np.testing.assert_allclose(found.times(v[:, 0]), expected @ v[:, 0], atol=1e-9)


@pytest.mark.parametrize("kind", AFFINITIES)
def test_planted_lobes_are_found_by_every_affinity(kind):
    counts, _, lobes, _ = planted()
    found = spectral_clusters(affinity(counts, kind), 3)
    assert adjusted_mutual_info_score(lobes.numpy(), found.numpy()) > 0.95


def test_clusters_do_not_depend_on_the_order_of_latents_or_the_sign_of_lines():
    counts, directions, lobes, _ = planted()
    order = torch.randperm(len(lobes))
    moved = spectral_clusters(affinity(counts.of_latents(order.numpy())), 3)
    straight = spectral_clusters(affinity(counts), 3)
    assert adjusted_mutual_info_score(moved.numpy(), straight[order].numpy()) == pytest.approx(1)
    flips = torch.where(torch.rand(len(lobes), 1) < 0.5, -1.0, 1.0)
    lines = [angular_clusters(x, 3, signed=True) for x in (directions, flips * directions)]
    assert torch.equal(*lines)
    assert adjusted_mutual_info_score(lobes.numpy(), lines[0].numpy()) > 0.9


def test_agreement_is_sklearns_ami_and_its_null_is_zero():
    one, other = torch.randint(4, (300,)), torch.randint(6, (300,))
    other[:150] = one[:150]
    found = agreement(one, other, n_null=50)
    expected = adjusted_mutual_info_score(one.numpy(), other.numpy())
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert abs(found.mean) < 0.01
    assert agreement(one, (one + 1) % 4).value == pytest.approx(1)
    shuffled = one[torch.randperm(300, generator=torch.Generator().manual_seed(9))]
    assert agreement(one, shuffled, n_null=50).p > 0.05


def test_directions_of_a_lobe_tell_it_and_random_directions_do_not():
    _, directions, lobes, _ = planted()
    told = lobe_prediction(directions, lobes, n_null=5)
    assert told.value > 0.9
    assert told.mean == pytest.approx(1 / 3, abs=0.15)
    untold = lobe_prediction(torch.randn_like(directions), lobes, n_null=5)
    assert abs(untold.excess) < 0.25


def test_spatial_modularity_is_found_where_it_was_planted():
    counts, directions, _, _ = planted()
    found = spatial_modularity(counts, directions, 3, n_null=30, n_fits=2)
    assert found.ami.value > 0.8
    assert found.ami_random.excess > 0.8
    assert found.accuracy is not None
    assert found.accuracy.excess > 0.4
    assert "3 lobes of 90 latents by phi" in str(found)


def test_co_occurrence_without_geometry_gives_nothing():
    counts, directions, lobes, _ = planted(follow=False)
    found = spatial_modularity(counts, directions, 3, n_null=30, n_fits=2)
    assert adjusted_mutual_info_score(lobes.numpy(), found.lobes.numpy()) > 0.95
    assert abs(found.ami.value) < 0.1
    assert found.to_json()["ami"]["excess"] < 0.1


def test_a_chunk_is_of_the_lobe_with_the_largest_share_active():
    counts, _, lobes, values = planted()
    occurs = (values != 0).reshape(240, 4, -1).any(1).double()
    shares = torch.stack([occurs[:, lobes == lobe].mean(1) for lobe in range(3)], 1)
    expected = torch.where(shares.sum(1) > 0, shares.argmax(1), -1)
    assert torch.equal(dominant_lobes(counts, lobes), expected)


def test_what_cannot_be_clustered_is_refused():
    counts, directions, _, _ = planted()
    with pytest.raises(ConfigError, match="n_clusters=1"):
        spectral_clusters(affinity(counts), 1)
    with pytest.raises(ShapeError, match="Counts of 90 latents but 89 directions"):
        spatial_modularity(counts, directions[:89])
    with pytest.raises(DataError, match="Use more text"):
        spatial_modularity(counts, directions, 3, least_chunks=200)
    with pytest.raises(DataError, match="1 chunks"):
        ChunkCounts.of(SparseCodes.from_dense(torch.eye(3)), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="3 tokens but 2 chunk numbers"):
        ChunkCounts.of(SparseCodes.from_dense(torch.eye(3)), torch.tensor([0, 1]))
    silent = ChunkCounts.of(SparseCodes.from_dense(torch.eye(3)[:2]), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="in no chunk or in all"):
        affinity(silent)
    with pytest.raises(DataError, match="A clustering of one cluster"):
        agreement(torch.zeros(4, dtype=torch.int64), torch.arange(4))
