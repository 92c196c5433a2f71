"""Which of thousands of differences are more than chance? Exact tests, and control of the rate.

A latent fires in k_s of the m_s documents of stratum s that hold it from the start; if firing has
nothing to do with belonging to A, the number in A is a sum of hypergeometric counts,

    K = sum_s Hypergeometric(n_s documents, m_s with the latent, a_s of them in A)

and P(K <= k), P(K >= k) are sums of a convolution: no approximation for rare latents. Strata of
like length make long documents compare with long ones only.

Where documents are passages of fewer texts they are not independent. Then whole texts are the
units: u_g = sum over the passages of text g of (in A - share of A)(fires - share firing), and
z = sum u_g / sqrt(sum u_g²), which never exceeds the square root of the number of texts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["benjamini_hochberg", "binomial_bound", "grouped_p", "stratified_p"]

MOST_EXACT_VARIANCE = 100.0
"""Above it the normal distribution, with a continuity correction, stands for the convolution."""


def benjamini_hochberg(p: NDArray[Any]) -> NDArray[Any]:
    """Adjusted p values: q_(i) = min over j >= i of m p_(j) / j, with p_(1) <= p_(2) <= ...

    Calling every q <= 0.05 a discovery keeps the expected share of false ones among them at 5 %,
    for independent and for positively dependent tests.

    Args:
        p: One a test; all tests that were made, also the hopeless ones.

    Returns:
        From 0 to 1, in the order of p.

    Source: Benjamini and Hochberg 1995.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5])).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.minimum(q, 1.0)


def stratified_p(
    hits: NDArray[Any], totals: NDArray[Any], in_a: NDArray[Any], sizes: NDArray[Any]
) -> NDArray[Any]:
    """Two-sided p values that firing and belonging to A go together, given the strata.

    Args:
        hits: [stratum, latent] documents of A in which it fires.
        totals: [stratum, latent] documents in which it fires.
        in_a: [stratum] documents of A.
        sizes: [stratum] documents.

    Returns:
        [latent] twice the smaller tail, at most 1; exact up to a variance of 100.

    >>> hits, totals = np.array([[3]]), np.array([[3]])
    >>> round(float(stratified_p(hits, totals, np.array([3]), np.array([6]))[0]), 6)  # 2 / 20
    0.1
    """
    from scipy.special import ndtr

    n, a = sizes[:, None].astype(float), in_a[:, None].astype(float)
    mean = (totals * a / n).sum(0)
    spare = np.maximum(n - 1, 1)
    variance = (totals * (n - totals) * a * (n - a) / (n**2 * spare)).sum(0)
    observed = hits.sum(0)
    p = np.ones(hits.shape[1])
    wide = variance > MOST_EXACT_VARIANCE
    z = np.maximum(np.abs(observed - mean) - 0.5, 0)[wide] / np.sqrt(variance[wide])
    p[wide] = 2 * ndtr(-z)
    laws: dict[tuple[int, int], tuple[int, NDArray[Any]]] = {}
    for j in np.flatnonzero(~wide & (variance > 0)):
        first, law = 0, np.ones(1)
        for s, m in enumerate(totals[:, j].tolist()):
            if (s, m) not in laws:
                laws[s, m] = _hypergeometric(int(sizes[s]), m, int(in_a[s]))
            start, one = laws[s, m]
            first, law = first + start, np.convolve(law, one)
        at = int(observed[j]) - first
        p[j] = 2 * min(law[: at + 1].sum(), law[at:].sum())
    return np.minimum(p, 1.0)


def grouped_p(
    scores: NDArray[Any], n_groups: int, n_strata: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two-sided p values when whole groups are the units.

    Args:
        scores: [group, latent] u_g, whose sum has mean 0 under chance.
        n_groups: Groups that belong to a stratum with both sides.
        n_strata: Such strata, each of which costs a degree of freedom.

    Returns:
        z and p, by Student's distribution.
    """
    from scipy.special import stdtr

    spread = np.sqrt((scores**2).sum(0))
    total = scores.sum(0)
    z = np.divide(total, spread, out=np.zeros_like(total), where=spread > 0)
    return z, 2 * stdtr(max(1, n_groups - n_strata), -np.abs(z))


def binomial_bound(
    observed: NDArray[Any], expected: NDArray[Any], most: NDArray[Any]
) -> NDArray[Any]:
    """At most how likely is a count this large, as a sum of `most` independent yes-or-no draws?

    P(K >= k) <= P(Binomial(N, mean / N) >= k) for k >= mean + 1, whatever the draws' chances: it
    holds for sums of hypergeometric counts, so for latents that meet in strata of documents.

    Args:
        observed: k.
        expected: Mean of K.
        most: N, the largest K can be.

    Returns:
        The bound; 1 where k < mean + 1.

    Source: Hoeffding 1956, theorem 4; Vatutin and Mikhailov 1982 for hypergeometric counts.
    """
    from scipy.special import betainc

    k, n = observed.astype(float), most.astype(float)
    share = np.clip(expected / np.maximum(n, 1), 0, 1)
    tail = betainc(np.maximum(k, 1), np.maximum(n - k + 1, 1), share)
    return np.where((k >= expected + 1) & (k <= n), tail, 1.0)


def _hypergeometric(n: int, m: int, a: int) -> tuple[int, NDArray[Any]]:
    """The smallest possible count, and the chance of each from there on."""
    from scipy.special import gammaln

    k = np.arange(max(0, a + m - n), min(a, m) + 1)

    def choose(top: Any, bottom: Any) -> Any:
        return gammaln(top + 1) - gammaln(bottom + 1) - gammaln(top - bottom + 1)

    log = choose(m, k) + choose(n - m, a - k) - choose(n, a)
    return int(k[0]), np.exp(log)
