"""Matchings come back through permutations, flips and rotations of what is not shared."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry import correlations, match, match_by, mmcs, neighbors
from saelab.sparse_codes import SparseCodes


def moved(directions, flip=True):
    order = torch.randperm(len(directions))
    flips = torch.where(torch.rand(len(order), 1) < 0.5, -2.0, 0.5) if flip else 1.0
    return flips * directions[order], order


def test_a_dictionary_permuted_and_flipped_is_itself():
    a = torch.randn(80, 32)
    b, order = moved(a)
    for method in ("hungarian", "greedy"):
        found = match(a, b, signed=True, method=method)
        assert torch.equal(order[found.partner], torch.arange(80))
        assert found.mcc.value == pytest.approx(1, abs=1e-5)
        assert found.mcc.mean < 0.6
        assert found.share() == 1
    both = mmcs(a, b, signed=True)
    assert both.forward.value == pytest.approx(1, abs=1e-5)
    assert both.backward.value == pytest.approx(1, abs=1e-5)
    # Without signs a flipped direction is not found.
    assert mmcs(a, b).forward.value < 0.9


def test_unrelated_directions_are_at_the_level_of_the_null():
    a, b = torch.randn(300, 64), torch.randn(300, 64)
    found = mmcs(a, b)
    assert abs(found.forward.excess) < 0.01
    assert found.expected == pytest.approx(math.sqrt(2 * math.log(300) / 64))
    assert found.forward.value == pytest.approx(found.expected, rel=0.2)
    assert abs(match(a, b).mcc.excess) < 0.02


def test_rotating_both_changes_nothing_and_rotating_one_loses_everything():
    a = torch.randn(60, 24)
    b, _ = moved(a, flip=False)
    rotation = torch.linalg.qr(torch.randn(24, 24)).Q
    assert mmcs(a @ rotation, b @ rotation).forward.value == pytest.approx(1, abs=1e-5)
    assert match(a, b @ rotation).mcc.value < 0.7


def test_duplicates_raise_mmcs_and_not_the_matching():
    a = torch.linalg.qr(torch.randn(32, 32)).Q
    copies = a[:16].repeat(2, 1)
    assert mmcs(copies, a).forward.value == pytest.approx(1, abs=1e-5)
    found = match(copies, a, method="hungarian")
    assert found.mcc.value == pytest.approx(0.5, abs=1e-5)
    assert len(found.partner.unique()) == 32
    assert mmcs(copies, a).backward.value < 0.7


@pytest.mark.parametrize("sizes", [(40, 40), (40, 25), (25, 40)])
def test_the_exact_matching_maximises_and_greedy_takes_the_best_first(sizes):
    a, b = (torch.nn.functional.normalize(torch.randn(n, 12), dim=1) for n in sizes)
    table = a @ b.T
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    exact, greedy = match(a, b, method="hungarian"), match(a, b, method="greedy")
    assert float(exact.similarity.sum()) == pytest.approx(
        float(table[rows, columns].sum()), abs=1e-4
    )
    assert float(greedy.similarity.sum()) <= float(exact.similarity.sum()) + 1e-5
    for found in (exact, greedy):
        used = found.partner[found.partner >= 0]
        assert len(used) == len(used.unique()) == min(sizes)
        assert bool((found.similarity[found.partner < 0] == 0).all())
    first = int(table.max(1).values.argmax())
    assert int(greedy.partner[first]) == int(table[first].argmax())


def test_greedy_is_greedy_where_every_neighbor_is_listed():
    a, b = (torch.nn.functional.normalize(torch.randn(8, 6), dim=1) for _ in range(2))
    table = a @ b.T
    expected = torch.full((8,), -1)
    left = table.clone()
    for _ in range(8):
        i, j = divmod(int(left.argmax()), 8)
        expected[i] = j
        left[i], left[:, j] = -torch.inf, -torch.inf
    assert torch.equal(match(a, b, method="greedy").partner, expected)


def test_neighbors_equal_a_dense_search_and_never_are_oneself():
    a = torch.nn.functional.normalize(torch.randn(1100, 8), dim=1)
    rows, cosines = neighbors(a, n=3, signed=True)
    table = a @ a.T
    size = table.abs().fill_diagonal_(-1)
    torch.testing.assert_close(cosines.abs(), size.topk(3, dim=1).values, atol=1e-6, rtol=0)
    assert not bool((rows == torch.arange(1100)[:, None]).any())
    torch.testing.assert_close(cosines, table.gather(1, rows))
    with pytest.raises(ConfigError, match="n=4 neighbors of 4"):
        neighbors(torch.eye(4), n=4)


def test_correlations_equal_numpys_and_are_zero_for_a_silent_latent():
    a = torch.randn(200, 9) * (torch.rand(200, 9) < 0.3)
    b = torch.randn(200, 7) * (torch.rand(200, 7) < 0.3)
    a[:, 2], b[:, 3], b[:, 5] = 0, 1.5, -2 * a[:, 4]
    found = correlations(SparseCodes.from_dense(a), SparseCodes.from_dense(b))
    joint = torch.corrcoef(torch.cat([a, b], 1).T)[:9, 9:].nan_to_num(0)
    torch.testing.assert_close(found, joint, atol=1e-5, rtol=0)
    assert float(found[4, 5]) == pytest.approx(-1, abs=1e-6)
    assert not bool(found[2].any())
    shifted = correlations(SparseCodes.from_dense(a), SparseCodes.from_dense(b), shift=100)
    direct = correlations(SparseCodes.from_dense(a), SparseCodes.from_dense(b.roll(100, 0)))
    torch.testing.assert_close(shifted, direct)


def test_latents_of_two_families_at_two_layers_are_matched_by_what_they_do():
    a = torch.rand(400, 20) * (torch.rand(400, 20) < 0.1)
    order = torch.randperm(20)
    b = SparseCodes.from_dense((3 * a + 0.1 * (a > 0) * torch.rand(400, 20))[:, order])
    one = SparseCodes.from_dense(a)
    found = match_by(correlations(one, b), correlations(one, b, shift=200))
    assert torch.equal(order[found.partner], torch.arange(20))
    assert found.mcc.value > 0.95
    assert found.mcc.mean < 0.3
    assert found.to_json()["n_matched"] == 20


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ShapeError, match="widths 4 and 5 have no cosine"):
        match(torch.eye(4), torch.eye(5))
    with pytest.raises(DataError, match="NaN"):
        match_by(torch.full((2, 2), torch.nan), torch.eye(2))
    codes = SparseCodes.from_dense(torch.eye(3))
    with pytest.raises(ShapeError, match="got 3 and 2"):
        correlations(codes, SparseCodes.from_dense(torch.eye(2)))
