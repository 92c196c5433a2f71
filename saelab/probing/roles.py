"""Which neurons or latents are dead, detect a token or an n-gram, or follow the position?

With a firing a value that is not zero (of neurons that are never exactly zero, one beyond a
threshold, see `activation_sparsity`), a unit is

- dead             if it never fires on the text, whose size is stated;
- token detector   if 1 to 5 tokens cover 95 % of its firings, and the tokens on which it fires at
                   95 % of their occurrences or more explain 95 % of its firings: recall and
                   precision are both asked for;
- n-gram detector  the same of n-grams, where it does not detect a shorter one: it fires on too few
                   occurrences of the last tokens themselves;
- positional       if I = sum over positions p(pos) KL(fires at pos | fires), in nats, is above 0.05
                   after subtracting what shuffled positions give.

A detector is a suppressor if what it writes lowers the logits of its own triggers. Tokens seen
fewer than `min_seen` times are never called covered, and units that fire fewer than `min_fires`
times get no role at all: they are rare.

Source: Voita et al. 2023, Neurons in Large Language Models: Dead, N-gram, Positional.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import ConfigError
from saelab.probing.firings import Firings, Grams

__all__ = ["Role", "RoleConfig", "Roles", "UnitRole", "find_roles", "positional_information"]

Role = Literal["dead", "rare", "token", "bigram", "trigram", "positional", "other"]


@final
@dataclass(frozen=True, kw_only=True)
class RoleConfig:
    """Thresholds of the roles."""

    share: float = 0.95
    """Of firings covered, and of occurrences on which a detector fires; inclusive."""
    max_triggers: int = 5
    """Tokens or n-grams a detector may have."""
    min_seen: int = 20
    """Occurrences a token or n-gram needs to be called covered."""
    min_fires: int = 20
    """Firings a unit needs for a role."""
    max_n: int = 2
    """Longest n-grams looked at, 1 to 3."""
    information: float = 0.05
    """Nats of position above which a unit is positional."""
    n_shuffles: int = 20
    """Shuffles of the positions whose mean information is subtracted."""
    min_rows: int = 20
    """Tokens a position needs to be looked at."""
    seed: int = 0
    """Of the shuffles."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 1 <= self.max_n <= 3 or self.max_triggers < 1:
            raise ConfigError(
                f"RoleConfig(share={self.share}, max_n={self.max_n}, "
                f"max_triggers={self.max_triggers}): share in (0, 1], max_n 1 to 3, and a trigger."
            )


@final
@dataclass(frozen=True, kw_only=True)
class UnitRole:
    """One neuron or latent."""

    unit: int
    """Which."""
    role: Role
    """Its role: the first that fits, in the order of the module's first lines."""
    density: float
    """Share of tokens on which it fires, 0 to 1."""
    n_covering: int
    """Tokens that cover `share` of its firings; 0 for a dead one."""
    triggers: tuple[tuple[int, ...], ...]
    """Token ids, or n-grams of them, that a detector detects, the most frequent first."""
    trigger_effect: float | None
    """Mean logit effect on the last tokens of its triggers; None where it is not known."""
    information: float
    """Nats of position, less what shuffled positions give; about 0 for most."""
    pattern: str
    """Of a positional unit: oscillating, both extremes, one extreme or other; else empty."""

    @property
    def suppresses(self) -> bool:
        """Whether it is a detector that lowers its own triggers."""
        return self.trigger_effect is not None and self.trigger_effect < 0


@final
@dataclass(frozen=True, kw_only=True)
class Roles:
    """Every unit, and the text they were judged on."""

    units: list[UnitRole]
    """In order."""
    n_tokens: int
    """Tokens that counted: "dead" means never on so many."""
    n_positions: int
    """Positions looked at."""

    def having(self, role: Role) -> list[UnitRole]:
        """The units of one role."""
        return [one for one in self.units if one.role == role]

    def counts(self) -> dict[str, int]:
        """How many units have each role."""
        names = ("dead", "rare", "token", "bigram", "trigram", "positional", "other")
        return {name: sum(one.role == name for one in self.units) for name in names}

    @property
    def suppressors(self) -> list[UnitRole]:
        """Detectors that lower their own triggers."""
        return [one for one in self.units if one.suppresses]


def find_roles(
    firings: Firings,
    config: RoleConfig | None = None,
    effects: Callable[[Sequence[int]], Float[Tensor, "unit d_vocab"]] | None = None,
) -> Roles:
    """Judge every unit.

    Args:
        firings: Which units fire where.
        config: Thresholds.
        effects: What some units add to every token's logit (`LanguageModel.logit_effects` of what
            they write); without it nobody is called a suppressor. Asked for detectors only.
    """
    config = config or RoleConfig()
    totals = firings.totals()
    covering = np.zeros(firings.n_units, np.int64)
    detected: dict[int, tuple[Role, tuple[tuple[int, ...], ...]]] = {}
    enough = totals >= config.min_fires
    for n, role in zip(range(1, config.max_n + 1), ("token", "bigram", "trigram"), strict=False):
        units = np.flatnonzero(enough & ~np.isin(np.arange(len(totals)), list(detected)))
        grams = firings.grams(n, None if n == 1 else units)
        counted = _covering(grams, totals, config.share)
        covering = counted if n == 1 else covering
        detected |= {
            unit: (role, triggers)
            for unit, triggers in _detectors(grams, totals, counted, config).items()
            if enough[unit] and unit not in detected
        }
    information, patterns, n_positions = _positional(firings, config)
    effect = _trigger_effects({unit: found for unit, (_, found) in detected.items()}, effects)
    units = []
    for unit, total in enumerate(totals.tolist()):
        role, triggers = detected.get(unit, ("other", ()))
        if total < config.min_fires:
            role = "rare" if total else "dead"
        elif role == "other" and information[unit] > config.information:
            role = "positional"
        units.append(
            UnitRole(
                unit=unit,
                role=role,
                density=total / firings.n_tokens,
                n_covering=int(covering[unit]),
                triggers=triggers,
                trigger_effect=effect.get(unit),
                information=float(information[unit]),
                pattern=patterns[unit] if role == "positional" else "",
            )
        )
    return Roles(units=units, n_tokens=firings.n_tokens, n_positions=n_positions)


def positional_information(fires: NDArray[Any], seen: NDArray[Any]) -> NDArray[Any]:
    """I(fires; position) in nats, of each unit: 0 to the entropy of firing at all.

    I = sum over pos p(pos) [ fr(pos) ln(fr(pos) / fr) + (1 - fr(pos)) ln((1 - fr(pos)) / (1 - fr))]

    Args:
        fires: How often each unit fires at each position [unit, pos].
        seen: Tokens at each position.

    >>> positional_information(np.array([[4, 0], [2, 2]]), np.array([4, 4])).round(3).tolist()
    [0.693, 0.0]
    """
    share = seen / seen.sum()
    rate = fires / seen
    mean = (rate * share).sum(1, keepdims=True)

    def term(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[Any]:
        ratio = np.divide(part, whole, out=np.ones_like(part), where=(part > 0) & (whole > 0))
        return part * np.log(ratio)

    total = term(rate, np.broadcast_to(mean, rate.shape))
    total += term(1 - rate, np.broadcast_to(1 - mean, rate.shape))
    return np.maximum((total * share).sum(1), 0.0)


def _covering(grams: Grams, totals: NDArray[Any], share: float) -> NDArray[Any]:
    """Fewest n-grams that cover a share of each unit's firings; beyond all of them, one more."""
    found = np.zeros(len(totals), np.int64)
    if not len(grams.unit):
        return found
    starts = np.flatnonzero(np.diff(grams.unit, prepend=-1))
    running = np.cumsum(grams.fires)
    sizes = np.diff(np.append(starts, len(grams.unit)))
    before = np.repeat(running[starts] - grams.fires[starts], sizes)
    # 1e-9: exactly 95 % is enough, however 0.95 * total was rounded
    short = (running - before) < share * totals[grams.unit] - 1e-9
    found[grams.unit[starts]] = np.add.reduceat(short.astype(np.int64), starts) + 1
    return found


def _detectors(
    grams: Grams, totals: NDArray[Any], covering: NDArray[Any], config: RoleConfig
) -> dict[int, tuple[tuple[int, ...], ...]]:
    """Units that detect a few n-grams, with those."""
    recalled = grams.fires >= config.share * grams.seen - 1e-9
    recalled &= grams.seen >= config.min_seen
    explained = np.bincount(grams.unit[recalled], grams.fires[recalled], minlength=len(totals))
    good = (totals > 0) & (explained >= config.share * totals - 1e-9)
    good &= (covering >= 1) & (covering <= config.max_triggers)
    found: dict[int, list[tuple[int, ...]]] = {}
    for place in np.flatnonzero(recalled & good[grams.unit]):
        tokens = tuple(int(token) for token in grams.tokens[grams.gram[place]])
        found.setdefault(int(grams.unit[place]), []).append(tokens)
    return {unit: tuple(triggers) for unit, triggers in found.items()}


def _positional(firings: Firings, config: RoleConfig) -> tuple[NDArray[Any], list[str], int]:
    fires, seen = firings.by_position()
    used = seen >= config.min_rows
    fires, seen = fires[:, used], seen[used]
    if len(seen) < 2:
        return np.zeros(len(fires)), [""] * len(fires), int(used.sum())
    generator = np.random.default_rng(config.seed)
    bias = np.zeros(len(fires))
    totals, order = fires.sum(1), np.arange(len(fires))
    for _ in range(config.n_shuffles):
        shuffled = _shuffled(totals, seen, generator)
        bias += positional_information(shuffled[order], seen) / config.n_shuffles
    information = positional_information(fires, seen) - bias
    patterns = [
        _pattern(fires[unit], seen) if information[unit] > config.information else ""
        for unit in order
    ]
    return information, patterns, len(seen)


def _shuffled(
    totals: NDArray[Any], seen: NDArray[Any], generator: np.random.Generator
) -> NDArray[Any]:
    """As many firings of each unit, on tokens drawn without regard to position."""
    return np.stack([generator.multivariate_hypergeometric(seen, total) for total in totals])


def _pattern(fires: NDArray[Any], seen: NDArray[Any]) -> str:
    """Oscillating: on both sides of its mean, clearly, four times or more in turn."""
    rate, mean = fires / seen, fires.sum() / seen.sum()
    clear = np.abs(rate - mean) > 2 * np.sqrt(mean * (1 - mean) / seen)
    sides = np.sign(rate - mean)[clear]
    turns = int((np.diff(sides) != 0).sum())
    low, high = bool((rate <= 0.02).any()), bool((rate >= 0.98).any())
    if turns >= 4:
        return "oscillating"
    if low and high:
        return "both extremes"
    return "one extreme" if low or high else "other"


def _trigger_effects(
    detected: dict[int, tuple[tuple[int, ...], ...]],
    effects: Callable[[Sequence[int]], Tensor] | None,
) -> dict[int, float]:
    if effects is None or not detected:
        return {}
    found = {}
    units = sorted(detected)
    for start in range(0, len(units), 64):
        part = units[start : start + 64]
        for unit, row in zip(part, effects(part), strict=True):
            last = torch.tensor([gram[-1] for gram in detected[unit]], device=row.device)
            found[unit] = float(row[last].mean())
    return found
