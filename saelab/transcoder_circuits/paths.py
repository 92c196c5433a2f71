"""Along which chains does a prompt reach a latent or a logit? Greedy paths, backwards.

    start    a read-out: a latent's pre-activation, or a difference of logits
    step     everything that reaches it directly; the `per_step` largest extend the path
    keep     of all extended paths the `branches` largest, and go on from their ends
    end      at a token, an error or a bias, or after `depth` steps

A path's contribution is what its last step adds to the target through the others: an exact product
along the path, of which all extensions of a path by all terms sum to the path's own. "weakest" caps
its size at that of the smallest latent's contribution on the way: about what setting that latent to
zero would take away. Both signs are followed, since a latent may matter by what it holds down.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), section 3.2.3; their code follows positive
contributions only, and caps at the last latent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch

from saelab.attention_circuits import DirectAttribution, DirectTerms, Source
from saelab.circuits import LocalReplacement, ReadOuts
from saelab.errors import ConfigError

__all__ = ["Path", "PathConfig", "PathSums", "greedy_paths", "sum_paths"]


@final
@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """How paths are searched."""

    depth: int = 3
    """Most steps of a path."""
    per_step: int = 10
    """Extensions of one path that are considered."""
    branches: int = 15
    """Paths that are kept after each step."""
    signs: Literal["both", "positive"] = "both"
    """Whether what holds the target down is followed too; "positive" is the published search."""
    measure: Literal["product", "weakest"] = "product"
    """What paths are ranked by."""
    first_position: bool = False
    """Whether heads that read position 0, where models park attention, are followed."""

    def __post_init__(self) -> None:
        small = [n for n in ("depth", "per_step", "branches") if getattr(self, n) < 1]
        if small:
            raise ConfigError(f"PathConfig({small[0]}={getattr(self, small[0])}): at least 1.")


@final
@dataclass(frozen=True, slots=True)
class Path:
    """A chain of sources, from the target backwards."""

    steps: tuple[Source, ...]
    """What reaches the target directly first, then what reaches that, and so on."""
    contribution: float
    """What the last step adds to the target through the others."""
    weakest: float
    """Size of the smallest contribution of a latent on the way, infinite if there is none."""

    def size(self, measure: str = "product") -> float:
        """The contribution, or with "weakest" the same with its size capped."""
        if measure == "product":
            return self.contribution
        return math.copysign(min(abs(self.contribution), self.weakest), self.contribution)


class PathSums(NamedTuple):
    """Paths put together: each path counts at its last step and at the link that leads to it."""

    nodes: dict[Source, float]
    """By source: what it adds to the target along the paths found."""
    links: dict[tuple[Source, Source | None], float]
    """By (source, what it reaches; None for the target)."""


def greedy_paths(
    replacement: LocalReplacement, target: ReadOuts, config: PathConfig | None = None
) -> list[Path]:
    """Find the paths along which most reaches a target.

    Args:
        replacement: The prompt, built with `cut_heads=True`.
        target: One read-out: a row of `LocalReplacement.readouts`, or of
            `saelab.circuits.targets.read_out`.
        config: How.

    Returns:
        Every path that was kept at any step, so with each path its beginnings, the largest first.

    Raises:
        ConfigError: The target is not one read-out, or the heads are not cut.
    """
    if len(target) != 1:
        raise ConfigError(f"Paths lead to one read-out; {len(target)} were given.")
    config = config or PathConfig()
    search = _Search(DirectAttribution(replacement), config)
    kept: list[Path] = []
    ends = [_End(Path((), float(target.values(replacement.map.reads)[0]), math.inf), target, 1.0)]
    for _ in range(config.depth):
        ends = search.step(ends)
        kept += [end.path for end in ends]
        ends = [end for end in ends if end.readout is not None]
        if not ends:
            break
    return sorted(kept, key=lambda path: -abs(path.size(config.measure)))


def sum_paths(paths: Sequence[Path]) -> PathSums:
    """Put paths together into sums over sources and over links between them.

    >>> a, b = Source("latent", 0, 1, 5), Source("token", None, 1, 7)
    >>> sum_paths([Path((a,), 2.0, 2.0), Path((a, b), 1.5, 2.0)]).links[b, a]
    1.5
    """
    nodes: dict[Source, float] = {}
    links: dict[tuple[Source, Source | None], float] = {}
    for path in paths:
        last = path.steps[-1]
        link = (last, path.steps[-2] if len(path.steps) > 1 else None)
        nodes[last] = nodes.get(last, 0.0) + path.contribution
        links[link] = links.get(link, 0.0) + path.contribution
    return PathSums(nodes, links)


@dataclass(slots=True, eq=False)
class _End:
    """A path and the read-out that its next step adds to."""

    path: Path
    readout: ReadOuts | None
    factor: float
    """What one unit of the read-out is worth at the target."""


@final
class _Search:
    def __init__(self, direct: DirectAttribution, config: PathConfig) -> None:
        self.direct, self.config = direct, config
        latents = direct.replacement.latents
        places = zip(*(x.tolist() for x in latents.places()), strict=True)
        layers = direct.replacement.dictionaries.layers
        self.place_of = {(layers[s].hook, at, i): n for n, (s, at, i) in enumerate(places)}

    def step(self, ends: Sequence[_End]) -> list[_End]:
        """Extend every path by its largest terms, and keep the largest of all."""
        readouts = [end.readout for end in ends if end.readout is not None]
        terms = self.direct.terms(readouts)
        table = terms.table().double()
        found: list[tuple[_End, Path, int]] = []
        for row, end in enumerate(ends):
            sources = self.direct.sources(int(readouts[row].positions[0]))
            values = table[row] * end.factor
            for column in self._best(values, sources):
                source, value = sources[column], float(values[column])
                weakest = min(end.path.weakest, abs(value) if source.kind == "latent" else math.inf)
                path = Path((*end.path.steps, source), value, weakest)
                found.append((end, path, row))
        measure = self.config.measure
        sizes = [one[1].size(measure) for one in found]
        signed = self.config.signs == "positive"
        order = sorted(range(len(found)), key=lambda n: -sizes[n] if signed else -abs(sizes[n]))
        return [self._end(*found[n], terms) for n in order[: self.config.branches]]

    def _best(self, values: torch.Tensor, sources: Sequence[Source]) -> list[int]:
        signed = self.config.signs == "positive"
        sizes = values if signed else values.abs()
        order = sizes.argsort(descending=True, stable=True).tolist()
        best = []
        for column in order:
            if float(sizes[column]) <= 0 or len(best) == self.config.per_step:
                break
            source = sources[column]
            if self.config.first_position or source.kind != "head" or source.position != 0:
                best.append(column)
        return best

    def _end(self, before: _End, path: Path, row: int, terms: DirectTerms) -> _End:
        source, replacement = path.steps[-1], self.direct.replacement
        if source.kind == "latent":
            place = self.place_of[source.hook or "", source.position or 0, source.number or 0]
            readout = replacement.readouts(torch.tensor([place]))[0]
            # A latent is worth the same whether its value is read or what its value is made of.
            own = float(readout.values(replacement.map.reads)[0])
            return _End(path, readout if own else None, path.contribution / own if own else 0.0)
        if source.kind == "head":
            layer, head = source.layer or 0, source.number or 0
            assert before.readout is not None
            query = int(before.readout.positions[0])
            slope = terms.head_slopes[row, layer, head]
            readout = self.direct.head_value(layer, head, query, source.position or 0, slope)
            return _End(path, readout, before.factor)
        return _End(path, None, 0.0)
