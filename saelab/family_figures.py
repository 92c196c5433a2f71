"""The picture of a family: a latent, and what it splits into, level by level from left to right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from saelab.atlas_figures import quoted
from saelab.plots import ACCENT, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["FamilyEdge", "family_figure", "family_places"]

ROW = 26
"""Pixels of height for each leaf."""


@final
@dataclass(frozen=True, kw_only=True)
class FamilyEdge:
    """A parent and a child."""

    parent: str
    """Key of the parent."""
    child: str
    """Key of the child."""
    weight: float
    """How much the child belongs to the parent, 0 to 1."""
    note: str
    """What the pointer shows of it."""


def family_places(root: str, edges: Sequence[FamilyEdge]) -> dict[str, tuple[float, float]]:
    """Depth and height of every member: leaves in rows, each parent in the middle of its own.

    >>> edge = {"weight": 1.0, "note": ""}
    >>> family_places("a", [FamilyEdge(parent="a", child=c, **edge) for c in "bc"])
    {'a': (0.0, 0.5), 'b': (1.0, 0.0), 'c': (1.0, 1.0)}
    """
    below: dict[str, list[str]] = {}
    for edge in edges:
        below.setdefault(edge.parent, []).append(edge.child)
    depth, order = {root: 0}, [root]
    for key in order:  # grows while it is read
        for child in below.get(key, []):
            depth[child] = depth[key] + 1
            order.append(child)
    height: dict[str, float] = {}
    _rows(root, below, height)
    return {key: (float(depth[key]), height[key]) for key in order}


def _rows(root: str, below: Mapping[str, Sequence[str]], height: dict[str, float]) -> None:
    """Leaves from top to bottom; without recursion, since a family may be deep."""
    leaves = 0
    stack = [(root, False)]
    while stack:
        key, done = stack.pop()
        own = below.get(key, [])
        if done:
            height[key] = sum(height[child] for child in own) / len(own)
        elif own:
            stack.append((key, True))
            stack += [(child, False) for child in reversed(own)]
        else:
            height[key], leaves = float(leaves), leaves + 1


def family_figure(
    root: str,
    edges: Sequence[FamilyEdge],
    names: Mapping[str, str],
    levels: Sequence[str],
) -> "Figure":
    """Draw one family; the `customdata` of a point is its key.

    Args:
        root: Key of the latent at the left.
        edges: Parents and children; every child has one parent.
        names: What each key is called.
        levels: What the levels are called, from the left.
    """
    import plotly.graph_objects as go

    places = family_places(root, edges)
    figure = go.Figure()
    for edge in edges:
        (x0, y0), (x1, y1) = places[edge.parent], places[edge.child]
        steps = [step / 14 for step in range(15)]
        figure.add_scatter(
            x=[x0 + (x1 - x0) * t for t in steps],
            y=[y0 + (y1 - y0) * t * t * (3 - 2 * t) for t in steps],
            mode="lines",
            hoverinfo="skip",
            line={"color": ACCENT, "width": 0.6 + 3.4 * edge.weight},
            opacity=0.45,
        )
    notes = {edge.child: edge.note for edge in edges}
    keys = list(places)
    figure.add_scatter(
        x=[places[key][0] for key in keys],
        y=[places[key][1] for key in keys],
        mode="markers+text",
        marker={"size": 10, "color": [POSITIVE if key == root else ACCENT for key in keys]},
        text=[f"  {quoted(names[key], 44)}  " for key in keys],
        textposition=["top center" if key == root else "middle right" for key in keys],
        customdata=keys,
        hovertext=[f"{quoted(names[key])}<br>{notes.get(key, '')}" for key in keys],
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
    )
    deepest = max(x for x, _ in places.values())
    leaves = max(y for _, y in places.values()) + 1
    figure.update_xaxes(
        range=[-0.35, deepest + 0.9], tickvals=list(range(len(levels))), ticktext=list(levels),
        side="top", showline=False, title="",
    )  # fmt: skip
    figure.update_yaxes(visible=False, autorange="reversed")
    figure.update_layout(
        template=template(), height=int(90 + ROW * max(4, leaves)),
        margin={"l": 12, "r": 12, "t": 36, "b": 12},
    )  # fmt: skip
    return figure
