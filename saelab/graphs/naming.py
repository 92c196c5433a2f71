"""Which names of a drawing have room? The important ones first, none over another."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import final

from saelab.graphs.drawing import Drawing, Item
from saelab.graphs.node import READ_OUTS

__all__ = ["Room", "with_room"]

LETTER, LINE = 5.9, 13.0
"""Pixels that a letter takes, and a line of them."""


@final
@dataclass(frozen=True, kw_only=True)
class Room:
    """How large a figure is."""

    width: int
    """In pixels, about."""
    height: int
    """In pixels."""


def with_room(
    drawing: Drawing,
    always: Collection[str],
    max_names: int,
    sizes: Mapping[str, float],
    room: Room,
) -> list[Item]:
    """The items that are named, above themselves.

    Args:
        drawing: What is drawn.
        always: Ids of items that are named even over another name.
        max_names: Latents tried, the most influential.
        sizes: Diameter of each item in pixels, by id.
        room: Of the figure.
    """
    first = [
        item
        for item in drawing.items
        if item.id in always or item.kind == "group" or item.kind in READ_OUTS
    ]
    first.sort(key=lambda item: (item.kind not in READ_OUTS, -item.influence))
    latents = [item for item in drawing.items if item.kind in ("latent", "head")]
    latents.sort(key=lambda item: -item.influence)
    across = room.width / max(drawing.right, 1.0)
    upward = room.height / (len(drawing.rows) + 0.5)
    named, taken = [], []
    for item in dict.fromkeys([*first, *latents[:max_names]]):
        half, bottom = len(item.name) * LETTER / 2, item.y * upward + sizes[item.id] / 2
        box = (item.x * across - half, item.x * across + half, bottom, bottom + LINE)
        if item.id in always or not any(_overlap(box, other) for other in taken):
            taken.append(box)
            named.append(item)
    return named


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
