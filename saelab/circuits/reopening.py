"""Does the running model do what a saved graph says? The graph's prompt, opened again.

A graph on disk knows ids, values and edges, and neither model nor dictionaries. With both, its
prompt is taken apart anew (one pass, no attribution), every latent node is found again among the
active latents, and any change of their values can be measured in the model itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.circuits.dictionaries import Dictionaries
from saelab.circuits.frozen import ReadOuts
from saelab.circuits.interventions import measured_effects
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.targets import LogitTarget, read_out, resolve
from saelab.errors import ConfigError, DataError
from saelab.graphs import AttributionGraph, Node
from saelab.graphs.node import READ_OUTS
from saelab.logit_effects import RESIDUAL_KINDS
from saelab.models import LanguageModel

__all__ = ["Reopened", "reopen"]

TOLERANCE = 0.02
"""Largest gap between a value in the graph and the same value now, as a share of the largest."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Reopened:
    """A graph's prompt in the running model."""

    graph: AttributionGraph
    """What was opened."""
    replacement: LocalReplacement
    """Its prompt taken apart anew."""
    read_outs: tuple[ReadOuts, ...]
    """The graph's logits and targets, in its order."""
    places: Mapping[str, int]
    """Of each latent node's id: its place among the active latents."""

    def measured(
        self, changes: Mapping[str, float], *, hold_patterns: bool = False
    ) -> Float[Tensor, " read_out"]:
        """Change of the graph's read-outs when the model runs with latents at other values.

        Args:
            changes: New value by id of a latent node; at least one.
            hold_patterns: Whether attention patterns stay those of the prompt.

        Raises:
            ConfigError: Nothing is changed, or a node that is no latent.
        """
        wrong = [name for name in changes if name not in self.places]
        if wrong:
            raise ConfigError(f"{wrong[0]!r} is no latent of this graph: it cannot be changed.")
        found = {self.places[name]: float(value) for name, value in changes.items()}
        return measured_effects(
            self.replacement, found, self.read_outs, hold_patterns=hold_patterns
        ).cpu()

    def promoted(
        self, ids: Sequence[str], n: int = 2, among: int = 100
    ) -> dict[str, tuple[str, ...]]:
        """The tokens that what each latent writes here would promote, straight to the logits.

        Args:
            ids: Of latent nodes.
            n: Tokens of each.
            among: How many of the likeliest next tokens are candidates; over a whole vocabulary,
                tokens that are never seen come first.

        Returns:
            Tokens by id, most promoted first; latents that do not write to the residual stream
            are left out.
        """
        known = [name for name in ids if name in self.places]
        if not known:
            return {}
        model, latents = self.replacement.model, self.replacement.latents
        places = torch.tensor([self.places[name] for name in known], device=latents.site.device)
        parts = [
            rows
            for cut, rows in self.replacement.vectors(places).items()
            if model.hook_point(cut).kind in RESIDUAL_KINDS
        ]
        if not parts:
            return {}
        written = torch.stack(parts).sum(0) * latents.value[places].sign()[:, None]
        candidates = self.replacement.map.logits.topk(min(among, model.d_vocab)).indices
        found: dict[str, tuple[str, ...]] = {}
        for names, rows in zip(_batches(known, 64), written.split(64), strict=True):
            with torch.no_grad():
                effects = model.logit_effects(rows.to(model.device, model.dtype))
            best = candidates[effects[:, candidates].topk(min(n, len(candidates))).indices]
            for name, some in zip(names, best.tolist(), strict=True):
                found[name] = tuple(model.token_strings(some))
        return {name: found[name] for name, row in zip(known, written, strict=True) if row.any()}


def _batches(names: list[str], size: int) -> list[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def reopen(model: LanguageModel, dictionaries: Dictionaries, graph: AttributionGraph) -> Reopened:
    """Take the prompt of a graph apart anew, to change its latents in the running model.

    Args:
        model: The model it was traced in.
        dictionaries: Those it was traced with.
        graph: What `trace` gave, whole or pruned, also from disk.

    Raises:
        DataError: The graph does not know its tokens, or another model or other dictionaries
            give other values.
        ConfigError: The dictionaries cannot be traced.
    """
    ids = torch.tensor(graph.token_ids, dtype=torch.int64, device=model.device)
    if not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < model.d_vocab:
        raise DataError(
            f"This graph's tokens {list(graph.token_ids)[:5]} are not tokens of {model.name}. Open "
            "it with the model it was traced in."
        )
    asked = dict(graph.metadata.get("trace") or {})
    replacement = LocalReplacement(
        model,
        dictionaries,
        ids,
        first_position_as_error=bool(asked.get("first_position_as_error", True)),
    )
    read_outs = tuple(
        _read_out(replacement, node, float(total))
        for node, total in zip(graph.nodes, graph.totals.tolist(), strict=True)
        if node.kind in READ_OUTS
    )
    return Reopened(graph, replacement, read_outs, _places(replacement, graph))


def _places(replacement: LocalReplacement, graph: AttributionGraph) -> dict[str, int]:
    """Where each latent node is among the active latents, once its value is sure to be the same."""
    latents, layers = replacement.latents, replacement.dictionaries.layers
    columns = (*(one.tolist() for one in latents.places()), latents.value.tolist())
    here = {
        (layers[site].hook, position, index): (place, value)
        for place, (site, position, index, value) in enumerate(zip(*columns, strict=True))
    }
    nodes = [node for node in graph.nodes if node.kind == "latent"]
    largest = max((abs(node.value or 0.0) for node in nodes), default=0.0)
    found = {}
    for node in nodes:
        place, value = here.get((str(node.hook), node.position or 0, node.index or 0), (-1, 0.0))
        if place < 0 or abs(value - (node.value or 0.0)) > TOLERANCE * largest:
            raise DataError(
                f"The graph has {node.name} at {node.value or 0.0:.4g}, and with these "
                f"dictionaries it is {value:.4g}: it was traced with others, or in another model."
            )
        found[node.id] = place
    return found


def _read_out(replacement: LocalReplacement, node: Node, total: float) -> ReadOuts:
    """The node's read-out, once its value is sure to be the same."""
    last = len(replacement.tokens) - 1
    for target in _candidates(replacement, node):
        found = read_out(replacement.map.head, [target], last)
        value = float(replacement.values([found])[0])
        if total != total or abs(value - total) <= TOLERANCE * max(1.0, abs(total)):
            return found
    raise DataError(
        f"What {node.name} ({node.label!r}) is {total:.4g} of cannot be found again in "
        f"{replacement.model.name}: the graph was traced in another model, or explains a direction "
        "that has no name."
    )


def _candidates(replacement: LocalReplacement, node: Node) -> list[LogitTarget]:
    """The logit of a token; or the difference of two, by any reading of "first - second"."""
    model, logits = replacement.model, replacement.map.logits
    if node.kind == "logit":
        known = node.index is not None and node.index < model.d_vocab
        return resolve(model, logits, [node.index]) if known and node.index is not None else []
    found = []
    start = node.label.find(" - ")
    while start >= 0:
        pair = [_token(model, text) for text in (node.label[:start], node.label[start + 3 :])]
        if None not in pair:
            found += resolve(model, logits, [(pair[0] or 0, pair[1] or 0)])
        start = node.label.find(" - ", start + 1)
    return found


def _token(model: LanguageModel, text: str) -> int | None:
    """The one token of a text, or None."""
    ids = model.encode(text) if text else []
    return ids[0] if len(ids) == 1 else None
