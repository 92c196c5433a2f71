"""Does another latent swallow what a latent stands for? First-letter absorption.

A latent that should fire on every word beginning with "s" stays silent on "short", because a latent
of its own for "short" carries the letter along. With a unit probe direction p of the letter, the
decoder's cosines c_j = cos(p, W_dec[j]), what a latent adds along the probe

    a_j = f_j |W_dec[j]| c_j        and what there is to explain        P = p . (x - b_dec),

a word that the probe gets right is

- absorbed fully   if every main latent of the letter is silent, P > 0, and the latent j* of
                   largest a_j has |c_j*| >= 0.025 and a_j* / P >= 0.4;
- absorbed in part by s / (s + M), with M the sum of the main latents' a_j and s = min(S, P - M),
                   S the sum of the 3 largest a_j of other latents with |c_j| >= 0.1; this is 0 if
                   M >= P or S / P < 0.4, and 1 if M <= 0.

The main latents of a letter are found as a k-sparse probe: latents are ranked by what they
contribute to an L1 probe on the letter's words, and k grows as long as F1 gains more than 0.03.
Everything is the same when a signed latent is turned around. Read the score beside the F1 of the
sparse probes: a dictionary whose latents know nothing absorbs nothing.

Source: Chanin et al. 2024, A is for Absorption; the thresholds are SAEBench's. It differs from
SAEBench in P, which leaves b_dec out because no latent explains it, and in the probes, which are
logistic regressions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.probing.design import Design
from saelab.probing.linear import coefficients, fit_probe
from saelab.probing.measures import f1
from saelab.probing.splitting import Division
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = [
    "Absorption",
    "AbsorptionConfig",
    "ClassAbsorption",
    "absorption_of_word",
    "measure_absorption",
]

SILENT = 1e-8


@final
@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig:
    """Thresholds of the measurement."""

    f1_gain: float = 0.03
    """A further main latent must raise the F1 of the sparse probe by more than this."""
    max_main: int = 10
    """Main latents of a class, at most."""
    full_cosine: float = 0.025
    """|cosine| with the probe that an absorbing latent needs."""
    full_share: float = 0.4
    """Share of P that it must add, and that all must add for a part to count."""
    part_cosine: float = 0.1
    """|cosine| with the probe that counts for a part."""
    n_part: int = 3
    """Latents that count for a part."""
    min_f1: float = 0.6
    """Classes whose probe of activations has no larger test F1 are left out of the means."""
    min_classes: int = 20
    """With fewer classes than this the means are not to be trusted."""
    C: float = 1.0
    """Strength of the probes of activations, of standardized columns."""
    C_l1: float = 0.1
    """Strength of the L1 probes that rank latents."""

    def __post_init__(self) -> None:
        if self.max_main < 1 or self.n_part < 1 or not 0 < self.full_share <= 1:
            raise ConfigError(
                f"AbsorptionConfig(max_main={self.max_main}, n_part={self.n_part}, "
                f"full_share={self.full_share}): at least one latent, and a share in (0, 1]."
            )


@final
@dataclass(frozen=True, kw_only=True)
class ClassAbsorption:
    """One class, such as a letter."""

    name: str
    """What it is called."""
    probe_f1: float
    """Test F1 of its probe of activations."""
    main: tuple[int, ...]
    """Its main latents, the most telling first."""
    main_f1: float
    """Test F1 of the sparse probe of those."""
    n: int
    """Test examples of the class that the probe of activations gets right: the denominator."""
    full: float
    """Share of them absorbed fully; 0 where n is 0."""
    part: float
    """Mean part of them absorbed; 0 where n is 0."""
    absorbers: dict[int, int]
    """Latent -> on how many of them it absorbs fully."""


@final
@dataclass(frozen=True, kw_only=True)
class Absorption:
    """Every class, and the means over those with a probe worth the name."""

    classes: list[ClassAbsorption]
    """In the order of their names."""
    full: float
    """Mean share absorbed fully, 0 to 1; lower is better."""
    part: float
    """Mean part absorbed, 0 to 1."""
    main_f1: float
    """Mean test F1 of the sparse probes of the same classes; without it the score says nothing."""
    n_classes: int
    """Classes in the means."""
    enough: bool
    """Whether those are at least `min_classes`."""


def measure_absorption(
    sae: SAE,
    x: Float[Tensor, "word d_in"],
    classes: Sequence[str],
    division: Division,
    *,
    config: AbsorptionConfig | None = None,
) -> Absorption:
    """Measure absorption of every class, such as the words' first letters.

    Args:
        sae: An autoencoder.
        x: Activations of words, in the model's units, at the token where the class is known.
        classes: The class of each.
        division: Words that fit the probes, and words that are measured.
        config: Thresholds.

    Raises:
        ConfigError: The dictionary is a transcoder.
        DataError: A side has no word of any class with both sides filled.
    """
    config = config or AbsorptionConfig()
    if sae.is_transcoder:
        raise ConfigError("Absorption needs a dictionary that writes where it reads.")
    if len(classes) != len(x):
        raise ShapeError(f"{len(x)} words need {len(x)} classes; found {len(classes)}.")
    latents, names = sae.encode(x), np.asarray(classes)
    found = [
        _of_class(sae, x, latents, names == name, str(name), division, config)
        for name in np.unique(names)
        if min((names[side] == name).sum() for side in division) > 0
        and all((names[side] != name).any() for side in division)
    ]
    if not found:
        raise DataError("No class has words, and others, on both sides of the division.")
    good = [one for one in found if one.probe_f1 > config.min_f1 and one.n]

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in good])) if good else 0.0

    return Absorption(
        classes=found,
        full=mean("full"),
        part=mean("part"),
        main_f1=mean("main_f1"),
        n_classes=len(good),
        enough=len(good) >= config.min_classes,
    )


def absorption_of_word(
    codes: SparseCodes,
    directions: Float[Tensor, "d_sae d"],
    probe: Float[Tensor, " d"],
    to_explain: float,
    main: Sequence[int],
    config: AbsorptionConfig | None = None,
) -> tuple[int | None, float]:
    """One word: the latent that absorbs it fully (None if none does), and the part absorbed.

    Args:
        codes: Its latents, one row.
        directions: What one unit of each latent adds to the activation.
        probe: The probe's direction, of any length.
        to_explain: P, the activation without b_dec along the unit probe.
        main: The main latents of its class.
        config: Thresholds.
    """
    config = config or AbsorptionConfig()
    rows = directions[codes.indices.long()].double()
    unit = (probe / probe.norm()).double().to(rows.device)
    along = rows @ unit
    cosine = along / rows.norm(dim=1).clamp_min(1e-30)
    added = codes.values.double() * along
    is_main = torch.isin(codes.indices.long(), torch.tensor(list(main), device=rows.device))
    loud = codes.values.abs() >= SILENT
    full = None
    if to_explain > 0 and len(added) and not bool((is_main & loud).any()):
        most = int(added.argmax())
        telling = abs(float(cosine[most])) >= config.full_cosine
        if telling and float(added[most]) / to_explain >= config.full_share:
            full = int(codes.indices[most])
    counts = ~is_main & (added > 0) & (cosine.abs() >= config.part_cosine)
    others = float(added[counts].sort(descending=True).values[: config.n_part].sum())
    return full, _part(float(added[is_main].sum()), others, to_explain, config.full_share)


def _part(main: float, others: float, to_explain: float, share: float) -> float:
    if to_explain <= 0 or main >= to_explain or others / to_explain < share:
        return 0.0
    if main <= 0:
        return 1.0
    swallowed = min(others, to_explain - main)
    return swallowed / (swallowed + main)


def _of_class(
    sae: SAE,
    x: Tensor,
    latents: SparseCodes,
    positive: NDArray[Any],
    name: str,
    division: Division,
    config: AbsorptionConfig,
) -> ClassAbsorption:
    design, (train, test) = Design.of(x), division
    seen, held = design.rows(train), design.rows(test)
    probe = fit_probe(seen, positive[train], strengths=(config.C,))
    right = probe.scores(held) > 0
    main, main_f1 = _main_latents(Design.of(latents), positive, division, config)
    direction = torch.from_numpy(probe.direction())
    centered = (x.cpu().double() - _b_dec(sae)) @ (direction / direction.norm())
    directions = sae.W_dec.detach().cpu() / sae.normalization.scale_out
    rows = np.asarray(test)[right & positive[test]]
    found = [
        absorption_of_word(
            latents[int(row)].to("cpu"), directions, direction, float(centered[row]), main, config
        )
        for row in rows
    ]
    absorbers = [latent for latent, _ in found if latent is not None]
    return ClassAbsorption(
        name=name,
        probe_f1=f1(right, positive[test]),
        main=tuple(main),
        main_f1=main_f1,
        n=len(rows),
        full=len(absorbers) / max(1, len(rows)),
        part=sum(part for _, part in found) / max(1, len(rows)),
        absorbers={latent: absorbers.count(latent) for latent in sorted(set(absorbers))},
    )


def _main_latents(
    design: Design, positive: NDArray[Any], division: Division, config: AbsorptionConfig
) -> tuple[list[int], float]:
    """Latents of a class, and the test F1 of the sparse probe of them.

    k is chosen on the training words; the F1 given back is of the test words.
    """
    train, test = division
    seen, labels = design.rows(train), positive[train]
    weights, _ = coefficients(seen, labels, config.C_l1, l1_ratio=1.0)
    # What a latent adds on words of the class: the same whichever way a signed latent points, and
    # nothing for one that only tells by being silent.
    contribution = weights * seen.rows(np.flatnonzero(labels)).mean()
    ranked = [int(j) for j in np.argsort(-contribution, kind="stable") if contribution[j] > 0]
    main, best, kept = [], 0.0, None
    for k in range(1, min(config.max_main, len(ranked)) + 1):
        probe = fit_probe(seen, labels, columns=ranked[:k], strengths=(config.C,))
        reached = f1(probe.scores(seen) > 0, labels)
        if reached - best <= config.f1_gain:
            break
        main, best, kept = ranked[:k], reached, probe
    if kept is None:
        return [], 0.0
    return main, f1(kept.scores(design.rows(test)) > 0, positive[test])


def _b_dec(sae: SAE) -> Float[Tensor, " d"]:
    return (sae.b_dec.detach() / sae.normalization.scale_out).cpu().double()
