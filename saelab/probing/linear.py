"""What is a linear probe? Logistic regression whose every choice is made on the training rows.

    score(x) = w . x + b,  fitted to standardized columns and given back in the columns' own units

Mean and standard deviation come from the training rows (of each fold, in the cross-validation), C
from folds that keep groups whole, and both classes weigh the same. Sparse columns are divided by
their standard deviation and not centered: the bias does that, and zeros stay zeros.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.probing.design import Design
from saelab.probing.measures import auroc
from saelab.probing.splitting import folds

__all__ = ["STRENGTHS", "LinearProbe", "coefficients", "fit_probe"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C that are tried: the weight of the data against 1/2 |w|^2 of standardized columns."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """A fitted probe: w, b and where they came from."""

    columns: NDArray[Any]
    """The columns it reads, ascending."""
    weights: NDArray[Any]
    """One for each of them, in the column's own units."""
    bias: float
    """Added to the sum."""
    width: int
    """Columns of the design it was fitted to."""
    C: float
    """The strength chosen."""
    cross_validated: float | None
    """Mean AUROC of the folds at that strength; None if nothing was chosen."""

    def scores(self, values: Any) -> NDArray[Any]:
        """w . x + b of every example; above 0 is the decision "positive".

        Raises:
            ShapeError: The design has another width.
        """
        design = Design.of(values)
        if design.width != self.width:
            raise ShapeError(f"The probe reads {self.width} columns; found {design.width}.")
        if len(self.columns) == self.width:
            return np.asarray(design.values @ self.weights).ravel() + self.bias
        return design.columns(self.columns) @ self.weights + self.bias

    def direction(self) -> NDArray[Any]:
        """The weights as a vector as wide as the design, zero elsewhere."""
        full = np.zeros(self.width)
        full[self.columns] = self.weights
        return full


def fit_probe(
    values: Any,
    positive: NDArray[Any],
    *,
    columns: Sequence[int] | NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    n_folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """Fit a probe to training examples.

    Args:
        values: Training rows only: a matrix, `SparseCodes` or a `Design`.
        positive: Whether each is.
        columns: Which columns it may read; all if not given.
        groups: Examples that stay together in the folds.
        strengths: Values of C to choose from by cross-validated AUROC, the smallest of the best.
        n_folds: At most so many; with fewer than two possible, the middle strength is taken.
        seed: Of the folds.

    Raises:
        DataError: Only one class is there.
        ConfigError: There is no strength, or no column.
    """
    design, positive = checked(values, positive)
    chosen = np.arange(design.width) if columns is None else np.unique(np.asarray(columns, int))
    if not len(chosen) or not strengths:
        raise ConfigError(f"A probe of {len(chosen)} columns and {len(strengths)} strengths of C.")
    if columns is not None:
        design, width = Design(design.columns(chosen)), design.width
    else:
        width = design.width
    C, found = _strength(design, positive, groups, sorted(strengths), n_folds, seed)
    weights, bias = coefficients(design, positive, C)
    return LinearProbe(
        columns=chosen, weights=weights, bias=bias, width=width, C=C, cross_validated=found
    )


def coefficients(
    values: Any, positive: NDArray[Any], C: float, l1_ratio: float = 0.0, max_iter: int = 1000
) -> tuple[NDArray[Any], float]:
    """Weights and bias, in the columns' own units, of one logistic regression at one strength.

    minimizes C sum_i w_i log(1 + exp(-y_i score_i)) + l1 |w|_1 + (1 - l1) / 2 |w|_2^2 over
    standardized columns, w_i = n / (2 n of its class).

    Args:
        values: The rows it is fitted to.
        positive: Whether each is.
        C: The weight of the data.
        l1_ratio: 0 for |w|_2^2 alone, 1 for |w|_1 alone.
        max_iter: Passes, at most; what they reached is used.
    """
    from sklearn.linear_model import LogisticRegression

    design, positive = checked(values, positive)
    std, mean = design.std(), design.mean()
    matrix = design.scaled(std)
    if not design.is_sparse:
        matrix = matrix - (mean / std)[None, :]
    back = None
    if l1_ratio == 0 and design.n < design.width:
        matrix, back = _in_span(matrix)
    solver = "lbfgs" if l1_ratio == 0 else "liblinear" if l1_ratio == 1 else "saga"
    model: Any = LogisticRegression(
        C=C,
        solver=solver,
        class_weight="balanced",
        max_iter=max_iter,
        random_state=0,
        **_penalty(LogisticRegression, l1_ratio),
    )
    if solver == "liblinear":
        model.intercept_scaling = 10.0  # it penalizes the bias too, by the inverse of this
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ConvergenceWarning: the folds judge what was reached
        model.fit(matrix, positive)
    found = model.coef_[0] if back is None else back @ model.coef_[0]
    weights = found / std
    centered = 0.0 if design.is_sparse else float(mean @ weights)
    return weights, float(model.intercept_[0]) - centered


def _in_span(matrix: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fewer columns with the same l2 probe: coordinates in the span of the rows, and the way back.

    The weights of least |w|_2 are a sum of rows, so nothing outside their span is ever used.
    """
    gram = matrix @ matrix.T
    sizes, axes = np.linalg.eigh(
        np.asarray(gram if isinstance(gram, np.ndarray) else gram.todense())
    )
    kept = sizes > 1e-10 * max(float(sizes[-1]), 1e-300)
    lengths = np.sqrt(sizes[kept])
    return axes[:, kept] * lengths, np.asarray(matrix.T @ (axes[:, kept] / lengths))


def checked(values: Any, positive: NDArray[Any]) -> tuple[Design, NDArray[Any]]:
    """A design and its labels as booleans, once they are sure to fit each other."""
    design, positive = Design.of(values), np.asarray(positive)
    if positive.shape != (design.n,):
        raise ShapeError(f"{design.n} examples need {design.n} labels; found {positive.shape}.")
    if not np.isin(positive, (0, 1)).all():
        raise DataError("Labels of a binary probe are 0 and 1 (or False and True).")
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        raise DataError(f"All {design.n} training examples are of one class. Give examples of both")
    return design, positive


def _strength(
    design: Design,
    positive: NDArray[Any],
    groups: NDArray[Any] | None,
    strengths: Sequence[float],
    n_folds: int,
    seed: int,
) -> tuple[float, float | None]:
    divisions = folds(positive, groups, n_folds, seed) if len(strengths) > 1 else []
    if not divisions:
        return strengths[len(strengths) // 2], None
    means = []
    for C in strengths:
        found = []
        for train, test in divisions:
            weights, bias = coefficients(design.rows(train), positive[train], C)
            scores = np.asarray(design.rows(test).values @ weights).ravel() + bias
            found.append(auroc(scores, positive[test]))
        means.append(float(np.mean(found)))
    best = int(np.argmax(np.round(means, 6)))
    return strengths[best], means[best]


def _penalty(model: Any, l1_ratio: float) -> dict[str, Any]:
    """How the installed scikit-learn is told; from 1.8 on, l1_ratio alone says it."""
    import inspect

    if inspect.signature(model).parameters["penalty"].default == "deprecated":
        return {"l1_ratio": l1_ratio}
    if l1_ratio in (0, 1):
        return {"penalty": "l1" if l1_ratio else "l2"}
    return {"penalty": "elasticnet", "l1_ratio": l1_ratio}
