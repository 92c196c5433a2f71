"""What is different in one pass with some components, or some edges, taken away?

A receiver's input is the residual stream plus an offset: for every edge that is taken away, what
stands in for the sender minus what it wrote in this pass. Queries, keys and values have inputs of
their own, one for each head, so their projections are made anew from those. Blocks before the first
change need not run: the stream that leaves them is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saelab.models import Edit
from saelab.patching.graph import ComponentGraph
from saelab.patching.layout import BlockParts

__all__ = ["CleanRun", "Removal", "head_writes", "input_hooks", "skipping"]


def head_writes(
    parts: BlockParts, z: Float[Tensor, "row pos heads"]
) -> Float[Tensor, "head row pos d_model"]:
    """What each head of a block adds to the stream, without the bias that no head owns."""
    heads, d_head, _ = parts.W_O.shape
    return torch.einsum("rphe,hed->hrpd", z.unflatten(2, (heads, d_head)), parts.W_O.to(z))


def input_hooks(parts: Sequence[BlockParts]) -> list[str]:
    """Where the streams that receivers read can be seen; the last is what the logits read."""
    found = [hook for one in parts for hook in (one.stream, one.mlp_stream)]
    return list(dict.fromkeys([*found, parts[-1].end]))


@final
@dataclass(frozen=True, slots=True, eq=False)
class CleanRun:
    """What the untouched model does on some prompts."""

    writes: Float[Tensor, "sender row pos d_model"]
    """What every sender writes."""
    streams: tuple[Float[Tensor, "row pos d_model"], ...]
    """What enters every block."""


@contextmanager
def skipping(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, some transformer blocks give back what they are given."""
    for block in blocks:
        block.forward = _given
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _given(x: Tensor, *_: object, **__: object) -> Tensor:
    return x


@final
class Removal:
    """The edits of one pass without some edges, or without some senders altogether."""

    def __init__(
        self,
        parts: Sequence[BlockParts],
        graph: ComponentGraph,
        stand_in: Float[Tensor, "sender row_or_one pos_or_one d_model"],
        *,
        edges: Bool[Tensor, "receiver sender"] | None = None,
        nodes: Bool[Tensor, " sender"] | None = None,
        offsets: Mapping[str, Tensor] | None = None,
        clean: "CleanRun | None" = None,
    ) -> None:
        """Prepare one pass; a second one needs another `Removal`.

        Args:
            parts: Of `blocks_of`.
            graph: The components.
            stand_in: What is there in place of what was taken away.
            edges: Edges that are taken away.
            nodes: Senders that are taken away, for every receiver.
            offsets: By receiver: what is added to the residual stream that it reads.
            clean: What the untouched model does on the same prompts; blocks before the first
                change then need not run.
        """
        n_receivers, n_senders = len(graph.receivers), len(graph.senders)
        self.parts, self.graph, self.stand_in = parts, graph, stand_in
        none = torch.zeros(n_receivers, n_senders, dtype=torch.bool)
        self.edges = none if edges is None else edges & graph.allowed()
        self.nodes = none[0] if nodes is None else nodes
        self.offsets = dict(offsets or {})
        self.noted = self.edges.any(0) | self.nodes
        self._changed: list[Tensor | None] = [None] * n_senders
        self.clean = clean
        self.start = 0 if clean is None else self._first_block()
        """The first block that has to run."""
        if clean is not None and self.start:
            before = self.noted[: graph.senders_before(self.start, "q")]
            for sender in before.nonzero().flatten().tolist():
                self._changed[sender] = stand_in[sender] - clean.writes[sender]
        self._streams: dict[str, Tensor] = {}

    def edits(self) -> dict[str, Edit]:
        """By hook point."""
        found: dict[str, Edit] = {}
        for layer, one in list(enumerate(self.parts))[self.start :]:
            reads = {c: self._touched(layer, c) for c in ("q", "k", "v", "mlp")}
            heads = slice(1 + layer * self.graph.per_layer, (layer + 1) * self.graph.per_layer)
            begins = layer == self.start and (layer > 0 or bool(self.noted[0]))
            if begins or any(reads[c] for c in "qkv"):
                found[one.stream] = self._stream(layer)
            if reads["mlp"]:
                # In a parallel block this is the stream that attention reads, noted already.
                found.setdefault(one.mlp_stream, self._note(one.mlp_stream))
                found[one.mlp_in] = self._mlp(layer)
            for hook in dict.fromkeys(p.hook for p in one.projections.values()):
                if any(reads[c] and p.hook == hook for c, p in one.projections.items()):
                    found[hook] = self._projected(layer, hook, reads)
            if bool(self.noted[heads].any()):
                found[one.z] = self._heads(layer, heads)
            if bool(self.nodes[heads].any()):
                found[one.attention_out] = self._attention_out(heads)
            if bool(self.noted[heads.stop]):
                found[one.mlp_out] = self._mlp_out(heads.stop)
        last = len(self.graph.receivers) - 1
        if bool(self.edges[-1].any()) or self.graph.receivers[last] in self.offsets:
            found[self.parts[-1].end] = lambda x: self._input(last, x)[0]
        return found

    def _first_block(self) -> int:
        """The first block in which anything is different; at most the last one."""
        graph, last = self.graph, self.graph.n_layers - 1
        read = self.edges.any(1).nonzero().flatten().tolist()
        read += [graph.receivers.index(name) for name in self.offsets]
        gone = self.nodes.nonzero().flatten().tolist()
        layers = [at // graph.receivers_per_layer for at in read]
        layers += [max(at - 1, 0) // graph.per_layer for at in gone]
        return min([*layers, last])

    def _touched(self, layer: int, channel: str) -> bool:
        at = self.graph.receivers_at(layer, channel)
        given = self.offsets and any(name in self.offsets for name in self.graph.receivers[at])
        return bool(given) or bool(self.edges[at].any())

    def _input(self, first: int, stream: Tensor, n: int = 1) -> Float[Tensor, "one row pos d"]:
        """What some receivers read, each its own."""
        taken = self.edges[first : first + n]
        senders = taken.any(0).nonzero().flatten().tolist()
        x = stream.expand(n, *stream.shape)
        if senders:
            changed = torch.stack([self._change(sender, stream) for sender in senders])
            x = x + torch.einsum("cs,srpd->crpd", taken[:, senders].to(stream), changed)
        for at, name in enumerate(self.graph.receivers[first : first + n] if self.offsets else ()):
            if name in self.offsets:
                x = x.index_add(0, torch.tensor([at]), self.offsets[name][None].to(x))
        return x

    def _change(self, sender: int, like: Tensor) -> Tensor:
        change = self._changed[sender]
        assert change is not None, "a receiver runs before its sender"
        return change.expand_as(like)

    def _note(self, hook: str) -> Edit:
        def note(x: Tensor) -> Tensor:
            self._streams[hook] = x
            return x

        return note

    def _stream(self, layer: int) -> Edit:
        hook = self.parts[layer].stream

        def stream(x: Tensor) -> Tensor:
            if layer and layer == self.start:
                assert self.clean is not None, "blocks are skipped only where they were run"
                x = self.clean.streams[layer].to(x)
            if layer == 0:
                self._changed[0] = self.stand_in[0] - x
                if bool(self.nodes[0]):
                    x = self.stand_in[0].expand_as(x)
            self._streams[hook] = x
            return x

        return stream

    def _projected(self, layer: int, hook: str, reads: Mapping[str, bool]) -> Edit:
        one = self.parts[layer]

        def project(made: Tensor) -> Tensor:
            for channel, projection in one.projections.items():
                if projection.hook == hook and reads[channel]:
                    at = self.graph.receivers_at(layer, channel)
                    x = self._input(at.start, self._streams[one.stream], at.stop - at.start)
                    new = projection.of(one.attention_norm.forward(x))
                    made = made.index_copy(-1, projection.rows.flatten(), new.to(made))
            return made

        return project

    def _mlp(self, layer: int) -> Edit:
        one, at = self.parts[layer], self.graph.receivers_at(layer, "mlp").start

        def read(_: Tensor) -> Tensor:
            return one.mlp_norm.forward(self._input(at, self._streams[one.mlp_stream]))[0]

        return read

    def _heads(self, layer: int, heads: slice) -> Edit:
        def note(z: Tensor) -> Tensor:
            writes = head_writes(self.parts[layer], z)
            for n, sender in enumerate(range(heads.start, heads.stop)):
                self._changed[sender] = self.stand_in[sender] - writes[n]
            return z

        return note

    def _attention_out(self, heads: slice) -> Edit:
        gone = [s for s in range(heads.start, heads.stop) if bool(self.nodes[s])]

        def replace(x: Tensor) -> Tensor:
            for sender in gone:
                x = x + self._change(sender, x)
            return x

        return replace

    def _mlp_out(self, sender: int) -> Edit:
        def replace(x: Tensor) -> Tensor:
            self._changed[sender] = self.stand_in[sender] - x
            return self.stand_in[sender].expand_as(x) if bool(self.nodes[sender]) else x

        return replace
