"""What is a node of an attribution graph, and what is an edge?"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, final, get_args

from saelab.errors import DataError

__all__ = ["INPUTS", "KINDS", "READ_OUTS", "SOURCES", "Edge", "Kind", "Node"]

Kind = Literal[
    "latent",
    "error",
    "token",
    "position",
    "bias",
    "attention_bias",
    "head",
    "logit",
    "target",
]
KINDS: tuple[str, ...] = get_args(Kind)
"""Every kind of node."""
INPUTS = frozenset({"token", "position"})
"""Kinds that come from the prompt: an influence that starts here is explained."""
READ_OUTS = frozenset({"logit", "target"})
"""Kinds that a graph explains; only they carry a weight."""
SOURCES = frozenset({"token", "position", "bias", "attention_bias"})
"""Kinds that nothing explains: no edge leads into them. (An error has in-edges in some methods.)"""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One term of the frozen linear map: something that is read, written, or both.

    >>> Node(id="0_7_2", kind="latent", layer=0, position=2, index=7, value=1.7).name
    'latent 7 of layer 0 at 2'
    """

    id: str
    """Unique in its graph."""
    kind: Kind
    """What it stands for; `target` is a read-out that is no single logit (a difference, say)."""
    layer: int | None = None
    """Layer it belongs to, from 0; None for tokens, positions and read-outs."""
    position: int | None = None
    """Position in the prompt, from 0."""
    index: int | None = None
    """Latent number, token id, vocabulary id of a logit, or head number."""
    value: float | None = None
    """Activation of a latent, or the logit of a logit."""
    probability: float | None = None
    """Of a logit: what the model gives it after this prompt, 0 to 1."""
    label: str = ""
    """What a person or an atlas calls it; of a logit its token's text. Untrusted."""
    hook: str | None = None
    """Hook point that the dictionary of a latent or error reads."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"Node {self.id!r} has kind {self.kind!r}; kinds are {KINDS}.")
        if not self.id:
            raise DataError(f"A {self.kind} node has an empty id; give each node a unique one.")
        for name in ("layer", "position", "index"):
            number = getattr(self, name)
            if number is not None and number < 0:
                raise DataError(
                    f"Node {self.id!r} has {name} {number}; it counts from 0, or is None."
                )
        if self.value is not None and not math.isfinite(self.value):
            raise DataError(f"Node {self.id!r} has value {self.value}; it must be finite, or None.")
        if self.probability is not None and not 0 <= self.probability <= 1.0001:
            raise DataError(
                f"Node {self.id!r} has probability {self.probability}; it lies in 0 to 1."
            )

    @property
    def name(self) -> str:
        """Kind and place in words, without the label."""
        words = [self.kind.replace("_", " ")]
        words += [] if self.index is None else [str(self.index)]
        words += [] if self.layer is None else [f"of layer {self.layer}"]
        words += [] if self.position is None else [f"at {self.position}"]
        return " ".join(words)


class Edge(NamedTuple):
    """A contribution of one node to another."""

    source: Node
    """Upstream."""
    target: Node
    """Downstream."""
    weight: float
    """Signed contribution to the target's pre-activation or read-out, in its units."""
