"""Which k columns are best together? Found exactly, without a commercial solver, or with bounds.

For a support S of k standardized columns, c(S) is the optimum of the soft-margin linear SVM

    c(S) = min over beta, b:  |beta|^2 / (2 gamma) + sum_i w_i max(0, 1 - y_i (x_iS . beta + b))

with w_i = n / (2 n of its class) and gamma = 1 / sqrt(n). Its dual solution alpha at any support
bounds c from below at every support,

    c(S) >= - y . alpha - gamma / 2 sum over j in S of (X_j . alpha)^2,

which is linear in the 0/1 choice of columns. So a mixed-integer program (HiGHS, through scipy) over
all cuts so far names the support that could be best and bounds what any support can reach; c is
solved there, adds a cut, and the two meet.

Source: Gurnee et al. 2023, Finding Neurons in a Haystack (optimal sparse probing), after
Bertsimas et al. 2021, Sparse classification: a scalable discrete optimization perspective.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError
from saelab.probing.linear import checked, coefficients
from saelab.probing.ranking import adaptive_thresholding, mean_difference, top

__all__ = ["BestSupport", "best_support", "candidates", "support_objective"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BestSupport:
    """The best support found, and how far from the best possible it can be."""

    columns: NDArray[Any]
    """The support, ascending, as columns of the design."""
    objective: float
    """c of it."""
    bound: float
    """No support among the candidates has a smaller c."""
    considered: NDArray[Any]
    """The candidates: the proof speaks of subsets of these columns."""
    n_solved: int
    """Supports whose c was solved."""
    proven: bool
    """Whether objective and bound meet within the tolerance asked for."""

    @property
    def gap(self) -> float:
        """(objective - bound) / objective, 0 to 1."""
        return (self.objective - self.bound) / self.objective if self.objective else 0.0


def best_support(
    values: Any,
    positive: NDArray[Any],
    k: int,
    *,
    n_candidates: int = 50,
    tolerance: float = 1e-4,
    seconds: float = 30.0,
) -> BestSupport:
    """Solve for the best k columns.

    Args:
        values: Training rows.
        positive: Whether each is.
        k: Columns of the support.
        n_candidates: Columns that are considered, see `candidates`; all if the design has fewer.
        tolerance: Relative gap at which it counts as proven.
        seconds: After these the best found is returned with its bound; `proven` says which.

    Raises:
        ConfigError: k is not between 1 and the number of candidates.
    """
    design, positive = checked(values, positive)
    considered = candidates(design, positive, n_candidates)
    if not 1 <= k <= len(considered):
        raise ConfigError(f"k={k} of {len(considered)} candidate columns.")
    problem = _Problem(design.columns(considered), positive)
    started, solved, bound = time.monotonic(), {}, -math.inf
    cuts, likely = problem.relaxed_cuts(k)
    tried = _first_guesses(problem.x, positive, k, likely)
    while True:
        for support in tried:
            objective, offset, slopes = problem.solve(support)
            solved[tuple(support)] = objective
            cuts.append((offset, slopes))
        best = min(solved, key=lambda support: solved[support])
        left = max(1.0, seconds - (time.monotonic() - started))
        support, bound = _master(cuts, k, bound, left)
        met = solved[best] - bound <= tolerance * abs(solved[best])
        # The same support again: its cut is as tight as the solver of c is exact.
        met = met or (tuple(support) in solved and solved[best] - bound <= 1e-3 * solved[best])
        if met or tuple(support) in solved or time.monotonic() - started > seconds:
            break
        tried = [support]
    return BestSupport(
        columns=considered[np.array(best)],
        objective=solved[best],
        bound=min(bound, solved[best]),
        considered=considered,
        n_solved=len(solved),
        proven=met,
    )


def candidates(values: Any, positive: NDArray[Any], n: int) -> NDArray[Any]:
    """n columns worth considering, ascending: by mean difference, and by weight in a joint fit.

    Half come from each ranking. The paper takes all by mean difference, which leaves suppressors
    out.
    """
    design, positive = checked(values, positive)
    if design.width <= n:
        return np.arange(design.width)
    alone = mean_difference(design, positive)
    weights, _ = coefficients(design, positive, C=0.01)
    together = np.abs(weights) * design.std() * design.varies()
    chosen = list(np.argsort(-alone, kind="stable")[: n - n // 2])
    rest = [j for j in np.argsort(-together, kind="stable") if j not in set(chosen)]
    return np.sort(np.array(chosen + rest[: n // 2]))


def support_objective(values: Any, positive: NDArray[Any], columns: NDArray[Any]) -> float:
    """c of one support (see the module's first lines)."""
    design, positive = checked(values, positive)
    return _Problem(design.columns(columns), positive).solve(np.arange(len(columns)))[0]


class _Problem:
    """The inner problem: standardized candidate columns, labels, weights and gamma."""

    def __init__(self, x: NDArray[Any], positive: NDArray[Any]) -> None:
        std = x.std(axis=0)
        self.x = (x - x.mean(axis=0)) / np.where(std > 0, std, 1.0)
        self.y = np.where(positive, 1.0, -1.0)
        self.gamma = 1 / math.sqrt(len(x))
        share = np.where(positive, positive.mean(), 1 - positive.mean())
        self.w = 1 / (2 * share)

    def solve(self, support: NDArray[Any]) -> tuple[float, float, NDArray[Any]]:
        """c of a support, and the cut: constant and slope of every column."""
        part = self.x[:, support]
        beta, b, offset, slopes = self._machine(part, 1e-6)
        margins = np.maximum(0, 1 - self.y * (part @ beta + b))
        objective = float(beta @ beta / (2 * self.gamma) + self.w @ margins)
        return objective, offset, slopes

    def relaxed_cuts(
        self, k: int, n_steps: int = 10
    ) -> tuple[list[tuple[float, NDArray[Any]]], NDArray[Any]]:
        """Cuts where every column has a share of the support, and the k of largest share.

        For given shares s the machine reads columns times sqrt(s); for given weights the best
        shares are in proportion to |weight|. The two in turn go down to the relaxed optimum, whose
        cut is tighter than those of whole supports.
        """
        shares, cuts = np.full(self.x.shape[1], k / self.x.shape[1]), []
        for _ in range(n_steps):
            beta, _, offset, slopes = self._machine(self.x * np.sqrt(shares), 1e-4)
            cuts.append((offset, slopes))
            shares = _spread(np.abs(beta) * np.sqrt(shares), k)
        return cuts, top(shares, k)

    def _machine(
        self, part: NDArray[Any], tolerance: float
    ) -> tuple[NDArray[Any], float, float, NDArray[Any]]:
        """Weights and bias of the machine that reads `part`, and its cut."""
        from sklearn.svm import SVC

        machine = SVC(kernel="linear", C=self.gamma, tol=tolerance, cache_size=500)
        machine.fit(part, self.y, sample_weight=self.w)
        alpha = np.zeros(len(part))
        alpha[machine.support_] = -machine.dual_coef_[0] / self.gamma
        slopes = -self.gamma / 2 * (self.x.T @ alpha) ** 2
        return machine.coef_[0], float(machine.intercept_[0]), float(-self.y @ alpha), slopes


def _first_guesses(
    x: NDArray[Any], positive: NDArray[Any], k: int, likely: NDArray[Any]
) -> list[NDArray[Any]]:
    guesses = [likely, top(mean_difference(x, positive), k)]
    guesses.append(adaptive_thresholding(x, positive, largest=x.shape[1], smallest=k)[k])
    return list({tuple(one): one for one in guesses}.values())


def _spread(sizes: NDArray[Any], k: int) -> NDArray[Any]:
    """Shares in proportion to sizes that sum to k, none above 1."""
    shares, free = np.zeros(len(sizes)), np.ones(len(sizes), bool)
    sizes, room = sizes + 1e-12, float(k)
    while free.any():
        even = np.where(free, room * sizes / sizes[free].sum(), 0.0)
        full = even > 1
        if not full.any():
            return shares + even
        shares[full], free = 1.0, free & ~full
        room = k - shares.sum()
    return shares


def _master(
    cuts: list[tuple[float, NDArray[Any]]], k: int, bound: float, seconds: float
) -> tuple[NDArray[Any], float]:
    """The support whose cuts allow the smallest c, and that value, which no support is below."""
    import scipy.optimize

    solvers: Any = scipy.optimize  # its stubs take single numbers where it takes arrays

    d = len(cuts[0][1])
    slopes = np.stack([slope for _, slope in cuts])
    offsets = np.array([offset for offset, _ in cuts])
    found = solvers.milp(
        c=np.append(np.zeros(d), 1.0),
        integrality=np.append(np.ones(d), 0),
        bounds=solvers.Bounds(np.append(np.zeros(d), -np.inf), np.append(np.ones(d), np.inf)),
        constraints=[
            solvers.LinearConstraint(np.append(np.ones(d), 0)[None], k, k),
            solvers.LinearConstraint(
                np.hstack([-slopes, np.ones((len(cuts), 1))]), offsets, np.inf
            ),
        ],
        options={"mip_rel_gap": 1e-9, "time_limit": seconds},
    )
    if found.x is None:  # no time left: what is known so far still holds
        return np.sort(np.argsort(slopes[-1], kind="stable")[:k]), bound
    support = np.sort(np.argsort(-found.x[:d], kind="stable")[:k])
    reached = getattr(found, "mip_dual_bound", None)
    return support, max(bound, float(found.fun if reached is None else min(reached, found.fun)))
