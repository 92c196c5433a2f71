"""Do a few latents hold one concept, and nothing of the others? TPP and SCR.

Both ablate the N latents of most effect on a probe (`ablated_texts`) and ask other probes what they
still see. N random latents that fire are ablated beside it, as a control.

    targeted perturbation (TPP)   mean over classes c of  drop of c's probe - mean drop of others
    spurious removal (SCR)        (A_ablated - A_biased) / (A_clean - A_biased)

Accuracies are of balanced test examples, so a perfect ablation costs c's probe 1 - 0.5: TPP is at
most 0.5. SCR is 1 where ablating removes all of the bias.

Source: Karvonen et al. 2024, Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks,
after SHIFT (Marks et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from saelab.errors import DataError
from saelab.probing.ablated_texts import (
    PooledTexts,
    accuracy,
    checked_labels,
    effects_on,
    firing,
    largest,
)
from saelab.probing.linear import LinearProbe, fit_probe
from saelab.probing.splitting import Division, balanced

__all__ = [
    "SpuriousRemoval",
    "TargetedPerturbation",
    "spurious_removal",
    "targeted_perturbation",
]

STRENGTH = (0.1,)
"""C of the probes, of standardized columns."""


@final
@dataclass(frozen=True, kw_only=True)
class TargetedPerturbation:
    """Targeted probe perturbation at one number of latents."""

    n_latents: int
    """Latents (halves) asked for; fewer are ablated where fewer have a positive effect."""
    score: float
    """TPP, about -0.5 to 0.5; higher is better."""
    on_target: float
    """Mean drop of the ablated class's own probe."""
    on_others: float
    """Mean drop of the other classes' probes."""
    random_score: float
    """TPP of as many random latents that fire."""
    clean_accuracy: float
    """Mean accuracy of the probes before anything is ablated."""
    ablated: dict[int, tuple[int, ...]]
    """Class -> the halves ablated for it."""


@final
@dataclass(frozen=True, kw_only=True)
class SpuriousRemoval:
    """Spurious correlation removal at one number of latents, in one direction."""

    n_latents: int
    """Latents (halves) ablated."""
    score: float | None
    """SCR; 1 removes all of the bias. None where the probe was not biased (see `biased`)."""
    random_score: float | None
    """SCR of as many random latents that fire."""
    ablated_accuracy: float
    """Of the biased probe on balanced examples, ablated."""
    biased: float
    """Accuracy of the biased probe on balanced examples as they are."""
    clean: float
    """Accuracy of a probe of balanced training examples."""
    ablated: tuple[int, ...]
    """The halves that were ablated."""


def targeted_perturbation(
    texts: PooledTexts,
    classes: NDArray[Any],
    division: Division,
    *,
    n_latents: Sequence[int] = (2, 5, 10, 20, 50),
    seed: int = 0,
) -> list[TargetedPerturbation]:
    """TPP for several numbers of latents.

    Effect of half f on class c: (mean of f on c - mean on the rest) (w_c . d_f), where the mean is
    larger on c; only positive effects are ablated.

    Args:
        texts: Pooled examples.
        classes: Class of each example, 0, 1, ...
        division: Which examples fit the probes and rank latents, and which are measured.
        n_latents: How many latents are ablated.
        seed: Of the balanced draws and of the random latents.

    Raises:
        DataError: There are not two classes, or one is missing on a side.
    """
    classes = checked_labels(texts, classes)
    n_classes = int(classes.max()) + 1
    if n_classes < 2:
        raise DataError("TPP compares classes; there is only one.")
    probes, effects, rows = [], [], []
    for c in range(n_classes):
        train = _balanced_rows(classes == c, division.train, seed)
        probes.append(fit_probe(texts.x[train], classes[train] == c, strengths=STRENGTH))
        effects.append(effects_on(texts, train, classes == c, probes[c], clamp=True))
        rows.append(_balanced_rows(classes == c, division.test, seed))
    fires = firing(texts, division.train)
    generator = np.random.default_rng(seed)
    found = []
    for n in n_latents:
        ablated = [largest(effect, n) for effect in effects]
        random = [generator.choice(fires, min(len(one), len(fires)), False) for one in ablated]
        drops = _drops(texts, ablated, probes, rows, classes)
        noise = _drops(texts, random, probes, rows, classes)
        own, others = _own_and_others(drops)
        own_noise, others_noise = _own_and_others(noise)
        clean = [accuracy(probes[c], texts.x, rows[c], classes == c) for c in range(n_classes)]
        found.append(
            TargetedPerturbation(
                n_latents=n,
                score=own - others,
                on_target=own,
                on_others=others,
                random_score=own_noise - others_noise,
                clean_accuracy=float(np.mean(clean)),
                ablated={c: tuple(one.tolist()) for c, one in enumerate(ablated)},
            )
        )
    return found


def spurious_removal(
    texts: PooledTexts,
    wanted: NDArray[Any],
    spurious: NDArray[Any],
    division: Division,
    *,
    n_latents: Sequence[int] = (2, 5, 10, 20, 50),
    seed: int = 0,
) -> list[SpuriousRemoval]:
    """SCR for several numbers of latents.

    The biased probe sees only training examples whose two labels agree. Latents are ranked by
    |(mean on spurious - mean on the rest) (w . d_f)| of a probe of the spurious label, and the
    biased probe is tested on the wanted label where all four combinations are equally common.
    For the reverse direction call it with the labels exchanged.

    Args:
        texts: Pooled examples.
        wanted: The label the probe is meant for.
        spurious: The label that goes along with it in the biased examples.
        division: Which examples fit probes and rank latents, and which are measured.
        n_latents: How many latents are ablated.
        seed: Of the balanced draws and of the random latents.

    Raises:
        DataError: A combination of the labels is missing on a side.
    """
    wanted = checked_labels(texts, wanted).astype(bool)
    spurious = checked_labels(texts, spurious).astype(bool)
    train = _balanced_cells(wanted, spurious, division.train, seed)
    test = _balanced_cells(wanted, spurious, division.test, seed)
    agree = np.asarray(division.train)[(wanted == spurious)[division.train]]
    biased_rows = agree[balanced(wanted[agree], seed=seed)]
    biased = fit_probe(texts.x[biased_rows], wanted[biased_rows], strengths=STRENGTH)
    clean = fit_probe(texts.x[train], wanted[train], strengths=STRENGTH)
    of_spurious = fit_probe(texts.x[train], spurious[train], strengths=STRENGTH)
    effects = effects_on(texts, train, spurious, of_spurious, clamp=False)
    before = accuracy(biased, texts.x, test, wanted)
    best = accuracy(clean, texts.x, test, wanted)
    generator, fires = np.random.default_rng(seed), firing(texts, division.train)
    found = []
    for n in n_latents:
        ablated = largest(np.abs(effects), n)
        random = generator.choice(fires, min(len(ablated), len(fires)), replace=False)
        after = accuracy(biased, texts.without(ablated), test, wanted)
        noise = accuracy(biased, texts.without(random), test, wanted)
        found.append(
            SpuriousRemoval(
                n_latents=n,
                score=_removed(after, before, best),
                random_score=_removed(noise, before, best),
                ablated_accuracy=after,
                biased=before,
                clean=best,
                ablated=tuple(ablated.tolist()),
            )
        )
    return found


def _removed(after: float, before: float, best: float) -> float | None:
    return (after - before) / (best - before) if best - before >= 0.001 else None


def _drops(
    texts: PooledTexts,
    ablated: Sequence[NDArray[Any]],
    probes: Sequence[LinearProbe],
    rows: Sequence[NDArray[Any]],
    classes: NDArray[Any],
) -> NDArray[Any]:
    """[class whose latents are ablated, class whose probe is asked]: what its accuracy loses."""
    drops = np.zeros((len(probes), len(probes)))
    for c, latents in enumerate(ablated):
        x = texts.without(latents)
        for j, probe in enumerate(probes):
            before = accuracy(probe, texts.x, rows[j], classes == j)
            drops[c, j] = before - accuracy(probe, x, rows[j], classes == j)
    return drops


def _own_and_others(drops: NDArray[Any]) -> tuple[float, float]:
    n = len(drops)
    own = float(np.trace(drops)) / n
    return own, float(drops.sum() - np.trace(drops)) / (n * (n - 1))


def _balanced_rows(positive: NDArray[Any], side: NDArray[Any], seed: int) -> NDArray[Any]:
    labels = positive[side]
    if labels.all() or not labels.any():
        raise DataError("A class, or everything else, is missing on one side of the division.")
    return np.asarray(side)[balanced(labels, seed=seed)]


def _balanced_cells(
    wanted: NDArray[Any], spurious: NDArray[Any], side: NDArray[Any], seed: int
) -> NDArray[Any]:
    cells = (2 * wanted + spurious)[side]
    if len(np.unique(cells)) < 4:
        raise DataError(
            "SCR needs examples of all four combinations of the labels on both sides of the "
            f"division; one side has {len(np.unique(cells))}."
        )
    return np.asarray(side)[balanced(cells, seed=seed)]
