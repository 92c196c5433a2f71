"""Can a classifier be freed of a spurious attribute by taking out latents? SHIFT, with a rule.

A classifier w . x + b of mean-pooled activations is trained on ambiguous texts, in which a spurious
attribute always goes along with the class. Its dictionary reads the same place, so what latent j
adds to a text's margin y (w . x + b), and what setting it to zero takes away, is exactly

    effect_j = mean over texts of  y  pooled(f_j)  (w . d_j)

Only positive effects count: a latent that speaks against what the classifier was taught holds it
back already. The latents of largest effect are shown to a judge, and those it calls spurious are
set to zero at every token, with what the dictionary does not explain left as it is; then, if
wanted, the classifier is trained anew on the ambiguous texts as they look without them.

The published judge is a person. Here it is a rule, on examples with both labels that are used for
nothing else. A latent is spurious if its value tells the attribute better than the class:

    mean over classes   of |AUROC(f_j; attribute) - 1/2|
  > mean over attributes of |AUROC(f_j; class) - 1/2|

The rule has seen what the classifier has not, so a classifier of the judge's examples alone is
reported beside it, and ablation of as many random latents, which should change nothing.

Source: Marks et al. 2025 (arXiv 2403.19647), section 4: Spurious Human-interpretable Feature
Trimming. The rule is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError, DataError
from saelab.probing.ablated_texts import PooledTexts, checked_labels, firing, largest
from saelab.probing.design import Design
from saelab.probing.linear import LinearProbe, fit_probe
from saelab.probing.measures import auroc
from saelab.probing.splitting import balanced

__all__ = ["GroupAccuracy", "Judge", "Shift", "ShiftConfig", "attribute_judge", "margin_effects",
           "shift"]  # fmt: skip

Judge = Callable[[Sequence[int]], Sequence[int]]
"""Latents (halves) that matter most in, those judged spurious out: a rule, or a person."""


@final
@dataclass(frozen=True, kw_only=True)
class ShiftConfig:
    """How latents are taken out."""

    n_judged: int = 50
    """Latents (halves) shown to the judge: those of largest effect."""
    C: float = 0.1
    """Weight of the data against 1/2 |w|^2 of standardized columns, in every classifier."""
    n_random: int = 20
    """Random ablations that the result is compared with."""
    seed: int = 0
    """Of them, and of balanced draws."""

    def __post_init__(self) -> None:
        if self.n_judged < 1 or self.n_random < 1 or self.C <= 0:
            raise ConfigError(
                f"ShiftConfig(n_judged={self.n_judged}, n_random={self.n_random}, C={self.C}): "
                "all must be positive."
            )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAccuracy:
    """A classifier on texts of all four combinations of class and attribute, equally many."""

    accuracy: float
    """Of the class."""
    attribute: float
    """Share of decisions that agree with the attribute; 0.5 for a classifier that ignores it."""
    worst: float
    """Accuracy on the combination where it is lowest."""
    groups: Mapping[tuple[bool, bool], float]
    """Accuracy by (class, attribute)."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """What became of the classifier."""

    judged: tuple[int, ...]
    """The latents shown to the judge, largest effect first; half j + d_sae is the negative one."""
    effects: tuple[float, ...]
    """Their effects on the margin, in its units."""
    ablated: tuple[int, ...]
    """Those judged spurious."""
    of_latents: float
    """Share of the margin between the classes of ambiguous texts that goes through latents at all;
    the rest is what the dictionary does not explain, which no ablation takes out."""
    before: GroupAccuracy
    """The classifier of ambiguous texts."""
    after: GroupAccuracy
    """The same classifier with the latents at zero."""
    retrained: GroupAccuracy
    """Trained anew on the same ambiguous texts with the latents at zero."""
    random: tuple[GroupAccuracy, ...]
    """The first classifier with as many random latents that fire at zero."""
    random_retrained: tuple[GroupAccuracy, ...]
    """Trained anew with as many random latents at zero."""
    judge_only: GroupAccuracy | None
    """A classifier of the judge's examples alone; None if no examples were given."""
    balanced: GroupAccuracy | None
    """A classifier of as many texts in which class and attribute are independent; None without."""


def shift(
    texts: PooledTexts,
    wanted: NDArray[Any],
    attribute: NDArray[Any],
    *,
    ambiguous: NDArray[Any],
    test: NDArray[Any],
    judge: Judge,
    judge_rows: NDArray[Any] | None = None,
    balanced_rows: NDArray[Any] | None = None,
    config: ShiftConfig | None = None,
) -> Shift:
    """Train on ambiguous texts, take out what a judge calls spurious, and measure.

    Args:
        texts: Pooled texts, of `probing.pooled_texts` or of `probing.read_examples`.
        wanted: Class of each text, which the classifier is for; two classes.
        attribute: The spurious attribute of each text; two values.
        ambiguous: Rows it is trained on.
        test: Rows it is measured on, all four combinations; the larger ones are cut to the least.
        judge: Says which of the latents of largest effect are spurious (`attribute_judge`).
        judge_rows: The rows the judge has seen.
        balanced_rows: Rows of all four combinations, for what training on them would give.
        config: How.

    Raises:
        DataError: Rows are shared between training, judge and test, or a combination is missing.
    """
    config = config or ShiftConfig()
    wanted = checked_labels(texts, wanted).astype(bool)
    attribute = checked_labels(texts, attribute).astype(bool)
    _check_apart(ambiguous, test, judge_rows, balanced_rows)
    rows = _four(wanted, attribute, test, config.seed, "test")

    def measured(probe: LinearProbe, x: Any) -> GroupAccuracy:
        return _accuracy(probe.scores(x[rows]) > 0, wanted[rows], attribute[rows])

    def fitted(x: Any, some: NDArray[Any]) -> LinearProbe:
        return fit_probe(x[some], wanted[some], strengths=(config.C,))

    def whole(some: NDArray[Any] | None, name: str) -> GroupAccuracy | None:
        if some is None:
            return None
        return measured(fitted(texts.x, _four(wanted, attribute, some, config.seed, name)), texts.x)

    first = fitted(texts.x, ambiguous)
    effects = margin_effects(texts, ambiguous, wanted, first)
    judged = largest(effects, config.n_judged)
    ablated = sorted(set(judge(judged.tolist())))
    if not set(ablated) <= set(judged.tolist()):
        raise DataError("The judge named latents that it was not shown.")
    generator, fires = np.random.default_rng(config.seed), firing(texts, ambiguous)
    random = [
        texts.without(generator.choice(fires, min(len(ablated), len(fires)), replace=False))
        for _ in range(config.n_random)
    ]
    without = texts.without(ablated)
    return Shift(
        judged=tuple(judged.tolist()),
        effects=tuple(effects[judged].tolist()),
        ablated=tuple(ablated),
        of_latents=float(effects.sum() / _margin(texts, ambiguous, wanted, first)),
        before=measured(first, texts.x),
        after=measured(first, without),
        retrained=measured(fitted(without, ambiguous), without),
        random=tuple(measured(first, x) for x in random),
        random_retrained=tuple(measured(fitted(x, ambiguous), x) for x in random),
        judge_only=whole(judge_rows, "judge"),
        balanced=whole(balanced_rows, "balanced"),
    )


def margin_effects(
    texts: PooledTexts, rows: NDArray[Any], wanted: NDArray[Any], probe: LinearProbe
) -> NDArray[Any]:
    """What each half adds to the mean margin of some texts, both classes counting the same.

    Args:
        texts: Pooled texts.
        rows: Which count.
        wanted: Class of every text.
        probe: The classifier.
    """
    positive = np.asarray(wanted, bool)[rows]
    # Half the difference of class means: the mean of y f over classes of equal weight.
    means = Design.of(texts.halves).rows(rows).class_difference(positive) / 2
    return means * (texts.directions.double().numpy() @ probe.direction())


def _margin(
    texts: PooledTexts, rows: NDArray[Any], wanted: NDArray[Any], probe: LinearProbe
) -> float:
    """Mean margin, both classes counting the same, so that the bias cancels."""
    between = Design.of(texts.x).rows(rows).class_difference(wanted[rows]) / 2
    return float(between @ probe.direction())


def attribute_judge(
    texts: PooledTexts, rows: NDArray[Any], wanted: NDArray[Any], attribute: NDArray[Any]
) -> Judge:
    """The rule: a latent is spurious if it tells the attribute better than the class.

    Args:
        texts: Pooled texts.
        rows: Examples with both labels, all four combinations, used for nothing else.
        wanted: Class of every text.
        attribute: The spurious attribute of every text.

    Raises:
        DataError: A combination is missing among the rows.
    """
    wanted, attribute = np.asarray(wanted, bool)[rows], np.asarray(attribute, bool)[rows]
    _four(wanted, attribute, np.arange(len(rows)), 0, "judge")
    design = Design.of(texts.halves).rows(rows)

    def told(values: NDArray[Any], label: NDArray[Any], within: NDArray[Any]) -> float:
        """How well values tell a label where another one is fixed, 0 to 1/2."""
        return float(np.mean([
            abs(auroc(values[within == side], label[within == side]) - 0.5)
            for side in (False, True)
        ]))  # fmt: skip

    def judge(latents: Sequence[int]) -> list[int]:
        values = design.columns(list(latents))
        return [
            latent
            for n, latent in enumerate(latents)
            if told(values[:, n], attribute, wanted) > told(values[:, n], wanted, attribute)
        ]

    return judge


def _accuracy(
    decided: NDArray[Any], wanted: NDArray[Any], attribute: NDArray[Any]
) -> GroupAccuracy:
    right = decided == wanted
    groups = {
        (bool(a), bool(b)): float(right[(wanted == a) & (attribute == b)].mean())
        for a in (False, True)
        for b in (False, True)
    }
    return GroupAccuracy(
        accuracy=float(right.mean()),
        attribute=float((decided == attribute).mean()),
        worst=min(groups.values()),
        groups=groups,
    )


def _four(
    wanted: NDArray[Any], attribute: NDArray[Any], rows: NDArray[Any], seed: int, name: str
) -> NDArray[Any]:
    """As many rows of each combination."""
    cells = (2 * wanted + attribute)[rows]
    if len(np.unique(cells)) < 4:
        raise DataError(
            f"The {name} rows have {len(np.unique(cells))} of the four combinations of class and "
            "attribute; give some of each."
        )
    return np.asarray(rows)[balanced(cells, seed=seed)]


def _check_apart(*sides: NDArray[Any] | None) -> None:
    rows = [set(np.asarray(side).tolist()) for side in sides if side is not None]
    if sum(map(len, rows)) != len(set().union(*rows)):
        raise DataError(
            "A text is in two of the training, test, judge and balanced rows. Divide them first."
        )
