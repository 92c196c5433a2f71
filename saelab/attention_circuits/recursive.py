"""What moved what, from a target back to the prompt? Recursive direct feature attribution.

    take a target apart into what reaches it directly: heads by source position, latents, ...
    go on with the most influential of them: a latent's pre-activation is the next read-out, or what
    a head brought, which is a read-out of the values where it was read
    stop at tokens, errors and biases, or when `max_readouts` were taken apart

The result is an `AttributionGraph` whose sums close. A head is a node for every read-out it serves,
since what it brings depends on what is read. Attention patterns are held throughout: the graph says
along which heads information came, not why they looked there.

Source: recursive DFA of Kissane et al. 2024 (arXiv 2406.17759).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import final

import torch
from torch import Tensor

from saelab.attention_circuits.direct import DirectAttribution, Source
from saelab.circuits import LocalReplacement, LogitTarget, ReadOuts
from saelab.circuits.targets import read_out
from saelab.errors import ConfigError
from saelab.files import provenance
from saelab.graphs import AttributionGraph, Node

__all__ = ["RecursiveConfig", "recursive_graph"]


@final
@dataclass(frozen=True, kw_only=True)
class RecursiveConfig:
    """How far, and how finely."""

    max_readouts: int = 100
    """Targets, latents and heads that are taken apart, the most influential first."""
    batch_size: int = 16
    """Read-outs in one backward pass."""
    min_share: float = 0.002
    """Terms smaller than this share of all terms of a read-out, in size, are one node together."""

    def __post_init__(self) -> None:
        if self.max_readouts < 1 or self.batch_size < 1 or not 0 <= self.min_share < 1:
            raise ConfigError(
                f"RecursiveConfig(max_readouts={self.max_readouts}, batch_size={self.batch_size}, "
                f"min_share={self.min_share}): give at least one read-out and batch, and a share "
                "from 0 to below 1."
            )


def recursive_graph(
    replacement: LocalReplacement,
    targets: Sequence[LogitTarget] | Sequence[int],
    config: RecursiveConfig | None = None,
) -> AttributionGraph:
    """Trace targets back through heads and latents.

    Args:
        replacement: The prompt, built with `cut_heads=True`.
        targets: Read-outs of the last position (`circuits.targets.resolve` makes them), or latents
            by place among `replacement.latents`.
        config: Budget.

    Raises:
        ConfigError: Nothing is asked, or the heads are not cut.
    """
    if not targets:
        raise ConfigError("No target was named. Give logit targets, or active latents.")
    growth = _Growth(DirectAttribution(replacement), config or RecursiveConfig())
    for number, target in enumerate(targets):
        growth.start(target, number)
    growth.grow()
    return growth.graph()


@dataclass(slots=True, eq=False)
class _Open:
    """A node that is still to be taken apart."""

    name: str
    readout: ReadOuts
    influence: float = 0.0


@final
class _Growth:
    """A graph that grows backwards."""

    def __init__(self, direct: DirectAttribution, config: RecursiveConfig) -> None:
        self.direct, self.config = direct, config
        self.nodes: dict[str, Node] = {}
        self.totals: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.edges: dict[tuple[str, str], float] = {}
        self.open: dict[str, _Open] = {}
        self.taken: set[str] = set()
        self.sources = [direct.sources(at) for at in range(len(direct.replacement.tokens))]
        places = zip(*(x.tolist() for x in direct.replacement.latents.places()), strict=True)
        layers = direct.replacement.dictionaries.layers
        self.place_of = {(layers[s].hook, at, i): n for n, (s, at, i) in enumerate(places)}

    def start(self, target: LogitTarget | int, number: int) -> None:
        replacement = self.direct.replacement
        last = len(replacement.tokens) - 1
        if isinstance(target, LogitTarget):
            readout = read_out(replacement.map.head, [target], last)
            name = f"target_{number}" if target.token is None else f"logit_{target.token}"
            kind = "target" if target.token is None else "logit"
            position, label, weight = last, target.label, target.weight
        else:
            readout = self._latent_readout(target)
            name, kind, weight = f"target_{number}", "target", 1.0
            position, label = int(readout.positions[0]), f"pre-activation of latent {target}"
        value = float(readout.values(replacement.map.reads)[0])
        self.nodes[name] = Node(id=name, kind=kind, position=position, value=value, label=label)
        if isinstance(target, LogitTarget):
            self.nodes[name] = replace(
                self.nodes[name], index=target.token, probability=target.probability
            )
        self.weights[name] = weight
        self.open[name] = _Open(name, readout, weight)

    def grow(self) -> None:
        left = self.config.max_readouts
        while self.open and left > 0:
            # Targets first, however little they weigh.
            ranked = sorted(
                self.open.values(), key=lambda one: (one.name not in self.weights, -one.influence)
            )
            batch = ranked[: min(left, self.config.batch_size)]
            for one in batch:
                del self.open[one.name]
                self.taken.add(one.name)
            self._take_apart(batch)
            left -= len(batch)

    def graph(self) -> AttributionGraph:
        """What has grown; whatever was not taken apart counts as error."""
        for name in self.open:
            node = self.nodes[name]
            label = f"{node.kind} {node.index}, not taken apart"
            if node.kind in ("latent", "head"):
                self.nodes[name] = replace(node, kind="error", label=label, index=None)
        names = list(self.nodes)
        place = {name: n for n, name in enumerate(names)}
        replacement = self.direct.replacement
        ids, edges = replacement.tokens.tolist(), list(self.edges.items())

        def exact(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64)

        return AttributionGraph(
            nodes=tuple(self.nodes.values()),
            source=torch.tensor([place[a] for (a, _), _ in edges], dtype=torch.int64),
            target=torch.tensor([place[b] for (_, b), _ in edges], dtype=torch.int64),
            weight=exact([weight for _, weight in edges]),
            totals=exact([self.totals.get(n, torch.nan) for n in names]),
            weights=exact([self.weights.get(n, 0.0) for n in names]),
            tokens=tuple(replacement.model.token_strings(ids)),
            token_ids=tuple(ids),
            metadata={
                "model": replacement.model.identity.to_json(),
                "n_layers": replacement.model.n_layers,
                "recursive": asdict(self.config),
                "provenance": provenance(),
            },
        )

    def _take_apart(self, batch: Sequence[_Open]) -> None:
        terms = self.direct.terms([one.readout for one in batch])
        table = terms.table().double()
        for row, one in enumerate(batch):
            position = int(one.readout.positions[0])
            size = float(table[row].abs().sum())
            large = table[row].abs() > self.config.min_share * size
            self.totals[one.name] = float(one.readout.values(self.direct.replacement.map.reads)[0])
            for column in large.nonzero().flatten().tolist():
                source, weight = self.sources[position][column], float(table[row, column])
                name = self._node(source, one.name)
                self.edges[name, one.name] = self.edges.get((name, one.name), 0.0) + weight
                if source.kind in ("head", "latent"):
                    self._open(name, source, one, terms.head_slopes[row])
                    if name in self.open:
                        share = abs(weight) / size if size else 0.0
                        self.open[name].influence += one.influence * share
            rest = float(table[row][~large].sum())
            if rest:
                name = f"rest_{one.name}"
                self.nodes[name] = Node(
                    id=name, kind="error", position=position, label="smaller terms together"
                )
                self.edges[name, one.name] = rest

    def _node(self, source: Source, target: str) -> str:
        kind, layer, position, number, hook = source
        names = {
            "head": f"{layer}_head_{number}_{position}_to_{target}",
            "latent": f"{layer}_{_short(hook)}_{number}_{position}",
            "error": f"{layer}_error_{_short(hook)}_{position}",
            "decoder_bias": f"{layer}_bias_{_short(hook)}",
            "value_bias": "value_biases",
            "token": f"E_{number}_{position}",
            "position": f"P_{position}",
        }
        name = names.get(kind, "bias")
        if name not in self.nodes:
            plain = kind if kind in ("head", "latent", "error", "token", "position") else "bias"
            label = {"value_bias": "b_V of all heads", "decoder_bias": "b_dec"}.get(kind, "")
            place = position if plain != "bias" else None
            index = number if plain in ("head", "latent", "token") else None
            self.nodes[name] = Node(
                id=name, kind=plain, layer=None if name == "value_biases" else layer,  # type: ignore[arg-type]
                position=place, index=index, hook=hook if plain == "latent" else None,
                label=label, value=self._value(source) if plain == "latent" else None,
            )  # fmt: skip
        return name

    def _value(self, source: Source) -> float:
        return float(self.direct.replacement.latents.value[self._place(source)])

    def _place(self, source: Source) -> int:
        return self.place_of[source.hook or "", source.position or 0, source.number or 0]

    def _open(self, name: str, source: Source, parent: _Open, slopes: Tensor) -> None:
        if name in self.open or name in self.taken:
            return
        if source.kind == "latent":
            readout = self._latent_readout(self._place(source))
        else:
            layer, head = source.layer or 0, source.number or 0
            query = int(parent.readout.positions[0])
            readout = self.direct.head_value(
                layer, head, query, source.position or 0, slopes[layer, head]
            )
        self.open[name] = _Open(name, readout)

    def _latent_readout(self, place: int) -> ReadOuts:
        return self.direct.replacement.readouts(torch.tensor([place]))[0]


def _short(hook: str | None) -> str:
    """mlp_out of "blocks.3.hook_mlp_out"; mlp of a module's path."""
    words = [word for word in (hook or "").split(".") if word not in ("input", "output")]
    return words[-1].removeprefix("hook_") if words else "place"
