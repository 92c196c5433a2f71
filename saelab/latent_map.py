"""All latents at a glance: a map by direction or by firing, of points that one can choose from.

Points lie on a grid of whole numbers, so 65,536 latents travel to a browser in a megabyte: the
decoder map's -1 to 1 is -10,000 to 10,000; densities and activations are thousandths of log10.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saelab.atlas import Atlas
from saelab.atlas_figures import quoted
from saelab.errors import ConfigError
from saelab.plots import NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame
    from plotly.graph_objects import Figure

__all__ = ["COLORS", "LAYOUTS", "inside", "latent_map", "map_points", "nearest_on_map"]

LAYOUTS = ("by direction", "by firing")
"""Latents of similar decoder directions together, or how often against how strongly."""
COLORS = ("how often it fires", "kind of label", "side of zero", "how peaked its logits are")
"""What the color of a point may say."""
MOST_NAMED = 12_000
"""With more points than these, the pointer shows numbers without labels: they would be most of
what is sent."""
_KINDS = {
    "token": ("a token", "#d9730d"),
    "bigram": ("tokens in a row", "#8a6fb0"),
    "trigram": ("tokens in a row", "#8a6fb0"),
    "next": ("what comes next", "#2c6fbb"),
    "context": ("what came before", "#0e7c72"),
    "output": ("what it promotes", "#c2577f"),
    "model": ("a language model's", "#b59a00"),
    "human": ("a person's", "#d03a2b"),
    "": ("none", "#98a1a9"),
}
_PLACES = {
    "by direction": "SELECT latent, round(x * 10000) AS x, round(y * 10000) AS y FROM decoder_map",
    "by firing": "SELECT latent, round(1000 * log10(density)) AS x, "
    "round(1000 * log10(strongest)) AS y FROM latents WHERE count > 0 AND strongest > 0",
}
_SEQUENTIAL = [[0, "#9fb3c8"], [0.5, "#2a9d8f"], [1, "#d9730d"]]


def map_points(atlas: Atlas, layout: str) -> "DataFrame":
    """Where every latent that fires lies, and what is needed to color it.

    Args:
        atlas: Of which the map is.
        layout: One of `LAYOUTS`; by direction there are no points if no map was made.

    Returns:
        latent, x, y (int16), density, positive (share of its firing above zero), kurtosis, kind,
        label; by latent.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"There is no map {layout!r}; there are: {', '.join(LAYOUTS)}.")
    return atlas.sql(
        f"WITH places AS ({_PLACES[layout]}) SELECT latent, x::SMALLINT AS x, y::SMALLINT AS y, "
        "density::FLOAT AS density, (count_pos / count)::FLOAT AS positive, "
        "logit_kurtosis::FLOAT AS kurtosis, label, CASE WHEN human_label <> '' THEN 'human' "
        "WHEN llm_label <> '' THEN 'model' WHEN auto_label = '' THEN '' ELSE auto_kind END AS kind "
        "FROM places JOIN named USING (latent) ORDER BY latent"
    )


def latent_map(
    points: "DataFrame",
    layout: str,
    color: str,
    outline: Sequence[tuple[int, int]] = (),
    ringed: int | None = None,
) -> "Figure":
    """The map; the `customdata` of a point is its latent.

    Args:
        points: What `map_points` gave.
        layout: Its layout.
        color: One of `COLORS`.
        outline: Corners of what was chosen, drawn around it.
        ringed: A latent with a ring around it.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    if color == COLORS[1]:
        known: Any = {kind: name for kind, (name, _) in _KINDS.items()}
        names = points["kind"].map(known)
        for name, hue in dict.fromkeys(_KINDS.values()):
            some: Any = points[names == name]
            if len(some):
                _scatter(figure, some, {"color": hue}, len(points), name=f"{name} ({len(some):,})")
        figure.update_layout(
            legend={
                "orientation": "h", "x": 0, "y": _below(layout), "yanchor": "top",
                "entrywidth": 0.5, "entrywidthmode": "fraction", "itemsizing": "constant",
                "font": {"size": 12},
            }
        )  # fmt: skip
    else:
        _scatter(figure, points, _continuous(points, color, _below(layout)), len(points))
    at = points[points["latent"] == ringed]
    if len(at):
        ring = {"size": 15, "symbol": "circle-open", "color": POSITIVE, "line": {"width": 2.5}}
        figure.add_scattergl(
            x=at["x"], y=at["y"], mode="markers", marker=ring, hoverinfo="skip", showlegend=False
        )
    _axes(figure, points, layout)
    if outline:
        path = "M" + "L".join(f"{x},{y}" for x, y in outline) + "Z"
        figure.update_layout(selections=[{"type": "path", "path": path, "xref": "x", "yref": "y"}])
    figure.update_layout(
        template=template(), height=480, dragmode="lasso", showlegend=color == COLORS[1],
        margin={"l": 8 if layout == LAYOUTS[0] else 60, "r": 8, "t": 26, "b": 80},
    )  # fmt: skip
    return figure


def inside(outline: Sequence[tuple[int, int]], x: "np.ndarray", y: "np.ndarray") -> "np.ndarray":
    """Which points lie within an outline.

    Those from which a ray to the right crosses it an odd number of times.

    >>> import numpy as np
    >>> corners = [(0, 0), (10, 0), (10, 10), (0, 10)]
    >>> inside(corners, np.array([5, 15]), np.array([5, 5])).tolist()
    [True, False]
    """
    import numpy as np

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    odd = np.zeros(len(x), dtype=bool)
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], *outline[:1]], strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        odd ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def nearest_on_map(points: "DataFrame", latent: int, n: int = 25) -> list[int]:
    """A latent and those nearest to it on the map; empty if it is not there."""
    table: Any = points
    at = table[table["latent"] == latent]
    if not len(at):
        return []
    x, y = (table[name].astype(float) - float(at[name].iloc[0]) for name in ("x", "y"))
    order = (x**2 + y**2).argsort(kind="stable")[:n]
    return table["latent"].iloc[order].tolist()


def _scatter(
    figure: "Figure", points: "DataFrame", color: dict[str, Any], n: int, name: str = ""
) -> None:
    named = n <= MOST_NAMED
    figure.add_scattergl(
        x=points["x"].to_numpy(),
        y=points["y"].to_numpy(),
        mode="markers",
        name=name,
        marker={"size": 3 if n > 20_000 else 4 if n > 4_000 else 7, "opacity": 0.75, **color},
        customdata=points["latent"].to_numpy(),
        text=[quoted(label) for label in points["label"]] if named else None,
        hovertemplate="<b>%{customdata}</b>" + (" %{text}" if named else "") + "<extra></extra>",
    )


def _below(layout: str) -> float:
    """Where what explains the colors goes: under the map, and under its axis where it has one."""
    return -0.02 if layout == LAYOUTS[0] else -0.15


def _continuous(points: Any, color: str, y: float) -> dict[str, Any]:
    """Color by a number, sent as one byte a point."""
    import numpy as np

    if color == COLORS[2]:
        low, high, ticks = 0.0, 1.0, {0: "only below", 0.5: "both", 1: "only above"}
        values, title = points["positive"].to_numpy(), "fires on which side of zero"
        scale: list[list[Any]] = [[0, NEGATIVE], [0.5, "#c9c6bf"], [1, POSITIVE]]
    elif color == COLORS[3]:
        low, high, ticks = 0.0, 20.0, {0: "0", 10: "10", 20: "20+"}
        values, title = points["kurtosis"].to_numpy(), "kurtosis of logit effects"
        scale = _SEQUENTIAL
    else:
        values = np.log10(points["density"].to_numpy())
        low, high = np.percentile(values, [1, 99]) if len(values) else (-1.0, 0.0)
        low, high = float(low), float(max(high, low + 0.1))
        title, scale = "fires on 1 in … tokens", _SEQUENTIAL
        some = [place / 2 for place in range(-20, 1) if low <= place / 2 <= high]
        ticks = {place: f"{float(f'{10**-place:.1g}'):,.0f}" for place in some}
    share = np.nan_to_num((np.clip(values, low, high) - low) / (high - low))
    return {
        "color": np.round(255 * share).astype(np.uint8),
        "cmin": 0,
        "cmax": 255,
        "colorscale": scale,
        "colorbar": {
            "title": {"text": title, "font": {"size": 12}, "side": "bottom"},
            "orientation": "h",
            "thickness": 8,
            "len": 0.7,
            "y": y,
            "yanchor": "top",
            "tickvals": [255 * (tick - low) / (high - low) for tick in ticks],
            "ticktext": list(ticks.values()),
        },
    }


def _axes(figure: "Figure", points: Any, layout: str) -> None:
    if layout == LAYOUTS[0]:
        hidden = {"visible": False, "range": [-10_600, 10_600]}
        figure.update_xaxes(**hidden)
        figure.update_yaxes(**hidden, scaleanchor="x")
        return
    lowest = int(points["x"].min() // 1000) if len(points) else -1
    decades = list(range(lowest, 1))
    figure.update_xaxes(
        title="density, share of tokens (log scale)",
        tickvals=[1000 * place for place in decades],
        ticktext=[f"{100 * 10.0**place:g}%" for place in decades],
    )
    low, high = (int(points["y"].min()), int(points["y"].max())) if len(points) else (0, 1)
    strengths = [
        (1000 * (place + offset), f"{factor * 10.0**place:g}")
        for place in range(low // 1000, high // 1000 + 1)
        for factor, offset in ((1, 0), (2, 0.30103), (5, 0.69897))
        if low - 100 <= 1000 * (place + offset) <= high + 100
    ]
    figure.update_yaxes(
        title="strongest activation (log scale)",
        tickvals=[place for place, _ in strengths],
        ticktext=[name for _, name in strengths],
    )
