"""Which components does a model have, and which of them can read what another wrote?

Senders write to the residual stream; receivers read it. An edge is a sender and a receiver that
comes after it:

    senders      embed, a0.h0 ... (heads), m0 (an MLP), a1.h0 ... in the order the model runs them
    receivers    a0.q0 ..., a0.k0 ..., a0.v0 ..., m0, ..., logits

A head reads the stream three times, for its queries, its keys and its values. Where several heads
share keys and values (grouped-query attention), there is one receiver for each shared key and each
shared value, a5.k1, and what changes there changes all heads that share it: the model has no finer
place. `embed` is the stream that enters block 0, learned positions included.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, final

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.errors import ConfigError
from saelab.hook_points import near_misses

__all__ = ["EMBED", "LOGITS", "ComponentGraph", "Edge"]

EMBED, LOGITS = "embed", "logits"
"""The first sender and the last receiver."""


class Edge(NamedTuple):
    """What one component wrote, as another reads it.

    >>> str(Edge("a0.h1", "m3"))
    'a0.h1->m3'
    """

    sender: str
    """embed, a<layer>.h<head>, or m<layer>."""
    receiver: str
    """a<layer>.q<head>, a<layer>.k<key head>, a<layer>.v<key head>, m<layer>, or logits."""

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"


@final
@dataclass(frozen=True, slots=True)
class ComponentGraph:
    """The components of a model and the edges between them.

    >>> graph = ComponentGraph(n_layers=1, n_heads=2, n_key_heads=1)
    >>> graph.senders
    ('embed', 'a0.h0', 'a0.h1', 'm0')
    >>> graph.receivers
    ('a0.q0', 'a0.q1', 'a0.k0', 'a0.v0', 'm0', 'logits')
    >>> len(graph.edges()), graph.head_of_key(1)
    (11, 0)
    """

    n_layers: int
    """Blocks."""
    n_heads: int
    """Query heads in a block."""
    n_key_heads: int
    """Keys, and values, in a block; divides `n_heads`."""
    parallel: bool = False
    """Whether an MLP cannot read the heads of its own block."""
    mlps: bool = True
    """Whether blocks have MLPs that write anything."""

    def __post_init__(self) -> None:
        sizes = (self.n_layers, self.n_heads, self.n_key_heads)
        if min(sizes) < 1 or self.n_heads % self.n_key_heads:
            raise ConfigError(
                f"ComponentGraph of {self.n_layers} layers, {self.n_heads} heads and "
                f"{self.n_key_heads} key heads: all must be positive, and heads a multiple of key "
                "heads."
            )

    @property
    def per_layer(self) -> int:
        """Senders in a block: its heads and its MLP."""
        return self.n_heads + 1

    @property
    def channels(self) -> dict[str, tuple[int, int]]:
        """Where each kind of receiver lies among those of a block: first, and how many."""
        q, k = self.n_heads, self.n_key_heads
        return {"q": (0, q), "k": (q, k), "v": (q + k, k), "mlp": (q + 2 * k, 1)}

    @property
    def receivers_per_layer(self) -> int:
        """Receivers in a block."""
        return self.n_heads + 2 * self.n_key_heads + 1

    @property
    def senders(self) -> tuple[str, ...]:
        """Names, in the order the model runs them."""
        return _senders(self.n_layers, self.n_heads)

    @property
    def receivers(self) -> tuple[str, ...]:
        """Names, in the order the model runs them."""
        return _receivers(self.n_layers, self.n_heads, self.n_key_heads)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Senders that can be taken away: all but `embed`, and no MLP where there is none."""
        return tuple(n for n in self.senders[1:] if self.mlps or n.startswith("a"))

    def senders_before(self, layer: int, channel: str) -> int:
        """How many senders a receiver of a block can read; the first ones."""
        before = 1 + layer * self.per_layer
        return before + self.n_heads if channel == "mlp" and not self.parallel else before

    def receivers_at(self, layer: int, channel: str) -> slice:
        """Which receivers are the q, k, v or mlp of a block."""
        first, n = self.channels[channel]
        start = layer * self.receivers_per_layer + first
        return slice(start, start + n)

    def head_of_key(self, head: int) -> int:
        """Which key and value a query head uses."""
        return head * self.n_key_heads // self.n_heads

    def allowed(self) -> Bool[Tensor, "receiver sender"]:
        """Where there is an edge."""
        found = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        for layer in range(self.n_layers):
            for channel in self.channels:
                if channel != "mlp" or self.mlps:
                    before = self.senders_before(layer, channel)
                    found[self.receivers_at(layer, channel), :before] = True
        found[-1] = True
        if not self.mlps:
            found[:, self.per_layer :: self.per_layer] = False
        return found

    def edges(self, mask: Bool[Tensor, "receiver sender"] | None = None) -> list[Edge]:
        """The edges in a mask, or all, receivers in the model's order."""
        mask = self.allowed() if mask is None else mask & self.allowed()
        senders, receivers = self.senders, self.receivers
        return [Edge(senders[s], receivers[r]) for r, s in mask.nonzero().tolist()]

    def mask(self, edges: Iterable[Edge]) -> Bool[Tensor, "receiver sender"]:
        """Where some edges lie.

        Raises:
            ConfigError: There is no such edge.
        """
        found = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        receivers = {name: n for n, name in enumerate(self.receivers)}
        senders = {name: n for n, name in enumerate(self.senders)}
        named = list(edges)
        rows = torch.tensor([receivers.get(edge[1], -1) for edge in named], dtype=torch.long)
        columns = torch.tensor([senders.get(edge[0], -1) for edge in named], dtype=torch.long)
        wrong = (rows < 0) | (columns < 0) | ~self.allowed()[rows, columns]
        if bool(wrong.any()):
            sender, receiver = named[int(wrong.nonzero()[0])]
            raise ConfigError(
                f"There is no edge {sender}->{receiver} in a model of {self.n_layers} blocks with "
                f"{self.n_heads} heads and {self.n_key_heads} keys each. A receiver reads only "
                "what comes before it."
            )
        found[rows, columns] = True
        return found

    def node_mask(self, nodes: Iterable[str]) -> Bool[Tensor, " sender"]:
        """Where some senders lie.

        Raises:
            ConfigError: There is no such sender.
        """
        places = {name: n for n, name in enumerate(self.senders)}
        found = torch.zeros(len(places), dtype=torch.bool)
        for name in nodes:
            if name not in places:
                near = near_misses(name, places)
                raise ConfigError(
                    f"There is no component {name!r}. "
                    + (f"Did you mean {near}?" if near else "Say a3.h5, m3 or embed.")
                )
            found[places[name]] = True
        return found

    def readers(self, sender: int) -> list[int]:
        """The receivers that a sender computes from: those of one head, or of one MLP."""
        if sender == 0:
            return []
        layer, head = divmod(sender - 1, self.per_layer)
        if head == self.n_heads:
            return [self.receivers_at(layer, "mlp").start]
        key = self.head_of_key(head)
        return [
            self.receivers_at(layer, "q").start + head,
            self.receivers_at(layer, "k").start + key,
            self.receivers_at(layer, "v").start + key,
        ]

    def connected(self, mask: Bool[Tensor, "receiver sender"]) -> Bool[Tensor, "receiver sender"]:
        """The edges of a mask that lie on some path from `embed` to the logits within it.

        A head is on a path as soon as one of its queries, keys and values is.
        """
        mask = mask & self.allowed()
        reached = torch.zeros(mask.shape[1], dtype=torch.bool)
        reached[0] = True
        for sender in range(1, len(reached)):
            reached[sender] = bool((mask[self.readers(sender)] & reached).any())
        leads = torch.zeros(mask.shape[1], dtype=torch.bool)
        useful = torch.zeros(mask.shape[0], dtype=torch.bool)
        useful[-1] = True
        for sender in reversed(range(mask.shape[1])):
            leads[sender] = bool((mask[:, sender] & useful).any())
            if leads[sender]:
                useful[self.readers(sender)] = True
        return mask & reached[None] & useful[:, None]

    def nodes_of(self, mask: Bool[Tensor, "receiver sender"]) -> list[str]:
        """The senders, without `embed`, that some edge of a mask starts at."""
        at = (mask & self.allowed()).any(0)
        return [name for n, name in enumerate(self.senders) if n and bool(at[n])]


@cache
def _senders(n_layers: int, n_heads: int) -> tuple[str, ...]:
    names = [EMBED]
    for layer in range(n_layers):
        names += [f"a{layer}.h{head}" for head in range(n_heads)] + [f"m{layer}"]
    return tuple(names)


@cache
def _receivers(n_layers: int, n_heads: int, n_key_heads: int) -> tuple[str, ...]:
    names = []
    for layer in range(n_layers):
        names += [f"a{layer}.q{head}" for head in range(n_heads)]
        names += [f"a{layer}.{channel}{head}" for channel in "kv" for head in range(n_key_heads)]
        names.append(f"m{layer}")
    return (*names, LOGITS)
