"""Tests and bounds against enumeration and scipy."""

import itertools
import math

import numpy as np
import pytest

from saelab.documents.chance import (
    MOST_EXACT_VARIANCE,
    benjamini_hochberg,
    binomial_bound,
    grouped_p,
    stratified_p,
)


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.005, 0.009, 0.05, 0.5, 0.02])
    # sorted .005 .009 .02 .05 .5 times 5 / rank: .025 .0225 .0333 .0625 .5; minima from the end
    wanted = [0.0225, 0.0225, 0.0625, 0.5, 0.1 / 3]
    assert benjamini_hochberg(p) == pytest.approx(wanted)
    assert benjamini_hochberg(p[::-1])[::-1] == pytest.approx(wanted)
    assert benjamini_hochberg(np.ones(4)).tolist() == [1.0] * 4
    assert len(benjamini_hochberg(np.empty(0))) == 0


def test_one_stratum_is_the_hypergeometric_law() -> None:
    from scipy.stats import hypergeom

    for hits, total in ((0, 4), (4, 4), (2, 7), (6, 9)):
        p = stratified_p(np.array([[hits]]), np.array([[total]]), np.array([9]), np.array([20]))
        law = hypergeom(20, total, 9)
        wanted = min(1.0, 2 * min(law.cdf(hits), law.sf(hits - 1)))
        assert p[0] == pytest.approx(wanted, rel=1e-10)


def test_two_strata_are_what_trying_every_assignment_gives() -> None:
    fires = [[1, 1, 0, 0], [1, 1, 1, 0, 0]]  # two strata
    n_a = [2, 2]
    counts: dict[int, int] = {}
    ways = [itertools.combinations(range(len(x)), a) for x, a in zip(fires, n_a, strict=True)]
    for first, second in itertools.product(*map(list, ways)):
        k = sum(fires[0][i] for i in first) + sum(fires[1][i] for i in second)
        counts[k] = counts.get(k, 0) + 1
    whole = sum(counts.values())
    assert whole == math.comb(4, 2) * math.comb(5, 2)
    for hits in ([0, 0], [2, 2], [1, 1], [0, 2], [2, 1]):
        k = sum(hits)
        below = sum(c for key, c in counts.items() if key <= k) / whole
        above = sum(c for key, c in counts.items() if key >= k) / whole
        p = stratified_p(
            np.array(hits)[:, None], np.array([[2], [3]]), np.array(n_a), np.array([4, 5])
        )
        assert p[0] == pytest.approx(min(1.0, 2 * min(below, above)), rel=1e-10)


def test_the_normal_law_takes_over_smoothly() -> None:
    from scipy.stats import hypergeom

    n, m, a = 1000, 500, 500  # variance 62.6 is exact, the same times 4 is not
    for factor in (1, 4):
        law = hypergeom(factor * n, factor * m, factor * a)
        assert (law.var() > MOST_EXACT_VARIANCE) == (factor == 4)
        k = int(law.mean() + 4 * law.std())
        p = stratified_p(
            np.array([[k]]),
            np.array([[factor * m]]),
            np.array([factor * a]),
            np.array([factor * n]),
        )
        assert p[0] == pytest.approx(2 * law.sf(k - 1), rel=0.05)


def test_the_binomial_bound_is_never_below_the_exact_tail() -> None:
    from scipy.stats import hypergeom

    generator = np.random.default_rng(0)
    seen = 0
    for _ in range(300):
        n = int(generator.integers(5, 60))
        one, other = (int(x) for x in generator.integers(1, n, 2))
        law = hypergeom(n, one, other)
        for k in range(int(law.mean()) + 1, min(one, other) + 1):
            expected = one * other / n
            bound = binomial_bound(np.array([k]), np.array([expected]), np.array([min(one, other)]))
            assert bound[0] >= law.sf(k - 1) * (1 - 1e-9)
            seen += bound[0] < 0.01
    assert seen > 100  # and it is of use


def test_groups_cannot_say_more_than_their_number() -> None:
    # ten groups that all point the same way: z is the root of ten, however many documents they are
    for size in (1.0, 100.0):
        z, p = grouped_p(np.full((10, 1), size), 10, 1)
        assert z[0] == pytest.approx(math.sqrt(10))
        assert 0.005 < p[0] < 0.02
    z, p = grouped_p(np.array([[5.0], [0.0], [0.0]]), 3, 1)
    assert z[0] == 1.0 and p[0] > 0.3
    assert grouped_p(np.zeros((3, 1)), 3, 1)[1][0] == 1.0
