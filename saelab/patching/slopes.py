"""How does what is measured depend on what every receiver reads? One backward pass for all edges.

Each receiver gets a copy of the residual stream of its own, queries, keys and values too; as the
slope of a copy comes by in the backward pass it is contracted with the senders' changes, so that
no slope is kept.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.models import Edit
from saelab.patching.graph import ComponentGraph
from saelab.patching.layout import BlockParts

__all__ = ["Slopes"]


@final
class Slopes:
    """The edits of one pass whose backward pass contracts every receiver's slope with changes.

    scores[v, u] = sum over rows and positions of  dm/d(input of v) . change of u
    """

    def __init__(
        self,
        parts: Sequence[BlockParts],
        graph: ComponentGraph,
        changes: Float[Tensor, "sender row pos d_model"],
        embedding: Float[Tensor, "row pos d_model"] | None = None,
    ) -> None:
        """Prepare one pass.

        Args:
            parts: Of `blocks_of`.
            graph: The components.
            changes: What a patched sender would write, minus what it writes.
            embedding: What enters block 0; the model's own if not given.
        """
        self.parts, self.graph, self.changes = parts, graph, changes
        self.embedding = embedding
        self.leaf: Tensor | None = None
        self.scores = changes.new_zeros(len(graph.receivers), len(graph.senders))
        self._streams: dict[str, Tensor] = {}

    def edits(self) -> dict[str, Edit]:
        """By hook point."""
        found: dict[str, Edit] = {}
        for layer, one in enumerate(self.parts):
            found[one.stream] = self._stream(one.stream, start=layer == 0)
            found.setdefault(one.mlp_stream, self._stream(one.mlp_stream))
            for hook in dict.fromkeys(p.hook for p in one.projections.values()):
                found[hook] = self._projected(layer, hook)
            if self.graph.mlps:
                found[one.mlp_in] = self._mlp(layer)
        n = len(self.graph.senders)
        found[self.parts[-1].end] = lambda x: self._read(x, -1, 1, n)[0]
        return found

    def _stream(self, hook: str, *, start: bool = False) -> Edit:
        def note(x: Tensor) -> Tensor:
            if start:
                x = (x if self.embedding is None else self.embedding.to(x)).detach().clone()
                self.leaf = x.requires_grad_()
            self._streams[hook] = x
            return x

        return note

    def _read(self, stream: Tensor, first: int, n: int, senders: int) -> Tensor:
        """The stream once for each receiver; its gradient is contracted as it comes by."""
        x = stream.expand(n, *stream.shape).clone()
        at = slice(first, first + n) if first >= 0 else slice(first, None)

        def contract(slope: Tensor) -> None:
            self.scores[at, :senders] += torch.einsum(
                "crpd,srpd->cs", slope, self.changes[:senders].to(slope)
            )

        x.register_hook(contract)
        return x

    def _projected(self, layer: int, hook: str) -> Edit:
        one = self.parts[layer]

        def project(made: Tensor) -> Tensor:
            for channel, projection in one.projections.items():
                if projection.hook == hook:
                    at = self.graph.receivers_at(layer, channel)
                    before = self.graph.senders_before(layer, channel)
                    stream = self._streams[one.stream]
                    x = self._read(stream, at.start, at.stop - at.start, before)
                    new = projection.of(one.attention_norm.forward(x))
                    made = made.index_copy(-1, projection.rows.flatten(), new.to(made))
            return made

        return project

    def _mlp(self, layer: int) -> Edit:
        one, at = self.parts[layer], self.graph.receivers_at(layer, "mlp").start
        before = self.graph.senders_before(layer, "mlp")

        def read(_: Tensor) -> Tensor:
            stream = self._streams[one.mlp_stream]
            return one.mlp_norm.forward(self._read(stream, at, 1, before))[0]

        return read
