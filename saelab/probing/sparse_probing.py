"""How much of a concept do k columns hold, and how much would nothing hold?

A number of a probe never comes alone. Beside it stand

    shuffled    the whole procedure, selection included, with the training labels shuffled
    random      a probe of as many random orthonormal directions of the same columns
    majority    saying always the commoner class (accuracy), or always "positive" (F1)
    interval    bootstrap over test examples, or over their groups

Columns are chosen and fitted on the training rows; the test rows are read once, at the end.

Source: Gurnee et al. 2023, Finding Neurons in a Haystack; Kantamneni et al. 2025, Are Sparse
Autoencoders Useful?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError
from saelab.probing.design import Design
from saelab.probing.linear import STRENGTHS, LinearProbe, checked, fit_probe
from saelab.probing.measures import Interval, Scores, auroc, bootstrap_interval, score
from saelab.probing.optimal import best_support
from saelab.probing.ranking import adaptive_thresholding, mean_difference, top
from saelab.probing.splitting import Division

__all__ = ["Controls", "Method", "ProbeConfig", "ProbeReport", "choose_columns", "sparse_probe"]

Method = Literal["mean_difference", "adaptive", "optimal"]


@final
@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How probes are chosen and what they are compared with."""

    method: Method = "mean_difference"
    """How k columns are chosen; see `ranking` and `optimal`."""
    strengths: tuple[float, ...] = STRENGTHS
    """Values of C to choose from by cross-validation on the training rows."""
    n_folds: int = 5
    """Folds of that, at most."""
    n_controls: int = 3
    """Shuffles of the labels, and random projections, each."""
    n_resamples: int = 1000
    """Bootstrap resamples of the interval."""
    seed: int = 0
    """Of folds, shuffles, projections and resamples."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"method is '{self.method}'. Known: {', '.join(get_args(Method))}.")
        if self.n_controls < 1 or self.n_resamples < 1 or not self.strengths:
            raise ConfigError(
                f"ProbeConfig(n_controls={self.n_controls}, n_resamples={self.n_resamples}, "
                f"strengths={self.strengths}): a probe without a control or an interval is no "
                "answer. Give at least one of each."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the number would be if there were nothing to find."""

    shuffled: tuple[float, ...]
    """Test AUROC of the same procedure on shuffled training labels, for each shuffle."""
    random: tuple[float, ...]
    """Test AUROC of probes of k random orthonormal directions; empty where all columns are read."""
    majority_accuracy: float
    """Test accuracy of always saying the commoner class."""
    majority_f1: float
    """Test F1 of always saying "positive"."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeReport:
    """A probe, its scores on test rows, and its controls."""

    probe: LinearProbe
    """What was fitted."""
    k: int
    """Columns it reads."""
    width: int
    """Columns there were to choose from."""
    test: Scores
    """Scores on the test rows."""
    interval: Interval
    """Of the test AUROC."""
    controls: Controls
    """See `Controls`."""


def sparse_probe(
    values: Any,
    positive: NDArray[Any],
    k: int | None,
    division: Division,
    *,
    groups: NDArray[Any] | None = None,
    config: ProbeConfig | None = None,
) -> ProbeReport:
    """Choose k columns and fit them on the training rows, score on the test rows, run the controls.

    Args:
        values: All rows: a matrix, `SparseCodes` or a `Design`.
        positive: Whether each is.
        k: Columns of the probe; None for all.
        division: Which rows train and which test (`divide`).
        groups: Examples that are no independent draws.
        config: Settings; the defaults if not given.

    Raises:
        ConfigError: k is more than there are columns; or rows are on both sides.
        DataError: A side has one class only.
    """
    config = config or ProbeConfig()
    design, positive = checked(values, positive)
    train, test = division
    _refuse_leaks(train, test, groups)
    own = None if groups is None else np.asarray(groups)[train]
    seen, held = design.rows(train), design.rows(test)
    probe = _fitted(seen, positive[train], k, own, config)
    scores = probe.scores(held)
    return ProbeReport(
        probe=probe,
        k=len(probe.columns),
        width=design.width,
        test=score(scores, positive[test]),
        interval=bootstrap_interval(
            scores,
            positive[test],
            groups=None if groups is None else np.asarray(groups)[test],
            n_resamples=config.n_resamples,
            seed=config.seed,
        ),
        controls=_controls(seen, held, positive, division, k, own, config),
    )


def choose_columns(
    values: Any, positive: NDArray[Any], k: int, method: Method = "mean_difference"
) -> NDArray[Any]:
    """The k columns of a sparse probe, from training rows only.

    Raises:
        ConfigError: There are fewer than k columns.
    """
    design, positive = checked(values, positive)
    if not 1 <= k <= design.width:
        raise ConfigError(f"k={k}, and the design has {design.width} columns.")
    if method == "adaptive":
        largest = min(design.width, max(64, 2 * k))
        return adaptive_thresholding(design, positive, largest=largest, smallest=k)[k]
    if method == "optimal":
        return best_support(design, positive, k, n_candidates=max(50, k)).columns
    return top(mean_difference(design, positive), k)


def _fitted(
    design: Design,
    positive: NDArray[Any],
    k: int | None,
    groups: NDArray[Any] | None,
    config: ProbeConfig,
) -> LinearProbe:
    columns = None if k is None else choose_columns(design, positive, k, config.method)
    return fit_probe(
        design,
        positive,
        columns=columns,
        groups=groups,
        strengths=config.strengths,
        n_folds=config.n_folds,
        seed=config.seed,
    )


def _controls(
    seen: Design,
    held: Design,
    positive: NDArray[Any],
    division: Division,
    k: int | None,
    groups: NDArray[Any] | None,
    config: ProbeConfig,
) -> Controls:
    generator = np.random.default_rng(config.seed + 1)
    labels, truth = positive[division.train], positive[division.test]
    shuffled, random = [], []
    for _ in range(config.n_controls):
        mixed = generator.permutation(labels)
        shuffled.append(auroc(_fitted(seen, mixed, k, groups, config).scores(held), truth))
        if k is None or k >= seen.width:
            continue
        turn = _random_directions(seen, k, generator)
        probe = _fitted(Design(seen.project(turn)), labels, None, groups, config)
        random.append(auroc(probe.scores(Design(held.project(turn))), truth))
    share = float(truth.mean())
    return Controls(
        shuffled=tuple(shuffled),
        random=tuple(random),
        majority_accuracy=max(share, 1 - share),
        majority_f1=2 * share / (1 + share),
    )


def _random_directions(design: Design, k: int, generator: np.random.Generator) -> NDArray[Any]:
    """k random orthonormal directions of the standardized columns, as [column, k]."""
    turn, _ = np.linalg.qr(generator.standard_normal((design.width, k)))
    return turn * (design.varies() / design.std())[:, None]


def _refuse_leaks(
    train: Sequence[int] | NDArray[Any],
    test: Sequence[int] | NDArray[Any],
    groups: NDArray[Any] | None,
) -> None:
    if shared := set(np.asarray(train).tolist()) & set(np.asarray(test).tolist()):
        raise ConfigError(f"{len(shared)} rows are on both sides of the division.")
    if groups is not None:
        both = np.intersect1d(np.asarray(groups)[train], np.asarray(groups)[test])
        if len(both):
            raise ConfigError(
                f"{len(both)} groups are on both sides of the division: divide with groups=."
            )
