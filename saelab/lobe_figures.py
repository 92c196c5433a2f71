"""The pictures of lobes: the map of latents in their colors, and whether they lie together."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saelab.atlas_figures import quoted
from saelab.geometry_survey import LobeLevel
from saelab.plots import ACCENT, NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame
    from plotly.graph_objects import Figure

__all__ = ["company_figure", "lobe_colors", "lobe_map"]

QUIET = "#98a1a9"
_FIRST = (ACCENT, POSITIVE, NEGATIVE, "#8a6fb0", "#b5485d", "#6f8f2d", "#b59a00", "#5c7a89")
MOST_NAMED = 12_000
"""With more points than these, the pointer shows numbers without labels."""
_GOLDEN = 0.618034


def lobe_colors(n: int) -> list[str]:
    """Colors of lobes: eight that are told apart easily, then hues around the circle.

    >>> lobe_colors(2), len(set(lobe_colors(24)))
    (['#0e7c72', '#d9730d'], 24)
    """
    found: list[str] = list(_FIRST[:n])
    for place in range(len(found), n):
        hue, light = (0.11 + place * _GOLDEN) % 1, (0.42, 0.58)[place % 2]
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.42))
        found.append(f"#{red:02x}{green:02x}{blue:02x}")
    return found


def lobe_map(
    points: "DataFrame",
    lobes: "np.ndarray",
    names: Mapping[int, str],
    places: Mapping[int, tuple[float, float]],
    chosen: int | None = None,
) -> "Figure":
    """The decoder map colored by lobe; the `customdata` of a point is its latent.

    Args:
        points: latent, x, y and label of every latent on the map.
        lobes: The lobe of each point; -1 for one of none.
        names: What lobes are called, by number.
        places: Where their names go.
        chosen: The lobe that alone is in color; all if None.
    """
    import plotly.graph_objects as go

    n = max([-1, *names]) + 1
    colors, figure = lobe_colors(n), go.Figure()
    named = len(points) <= MOST_NAMED
    bright = lobes >= 0 if chosen is None else lobes == chosen
    for some, quiet in ((~bright, True), (bright, False)):
        at: Any = points[some]
        if not len(at):
            continue
        marker: dict[str, Any] = {
            "size": _size(len(points)) + (2 if chosen is not None and not quiet else 0),
            "opacity": 0.8 if not quiet else 0.3 if chosen is None else 0.18,
            "color": QUIET,
        }
        if not quiet:
            marker |= {"color": lobes[some], "colorscale": _steps(colors), "cmin": -0.5,
                       "cmax": n - 0.5}  # fmt: skip
        labels = [names.get(int(lobe), "in no lobe") for lobe in lobes[some]]
        figure.add_scattergl(
            x=at["x"].to_numpy(), y=at["y"].to_numpy(), mode="markers", marker=marker,
            customdata=at["latent"].to_numpy(),
            text=[f"{quoted(a)}<br>lobe: {quoted(b)}" for a, b in
                  zip(at["label"], labels, strict=True)] if named else None,
            hovertemplate="<b>%{customdata}</b>" + (" %{text}" if named else "")
            + "<extra></extra>",
        )  # fmt: skip
    for lobe, (x, y) in places.items():
        if chosen is not None and lobe != chosen:
            continue
        figure.add_annotation(
            x=x, y=y, text=f"<b>{quoted(names[lobe], 22)}</b>", showarrow=False,
            font={"size": 12, "color": "#ffffff"}, bgcolor=colors[lobe], opacity=0.88,
            borderpad=2,
        )  # fmt: skip
    hidden = {"visible": False, "range": [-10_600, 10_600]}
    figure.update_xaxes(**hidden)
    figure.update_yaxes(**hidden, scaleanchor="x")
    figure.update_layout(
        template=template(), height=450, dragmode="pan", margin={"l": 4, "r": 4, "t": 4, "b": 4}
    )
    return figure


def company_figure(
    level: LobeLevel, names: Mapping[int, str], chosen: int | None = None
) -> "Figure":
    """Do latents of a lobe lie together? A bar a lobe, with a mark where chance would be.

    The `customdata` of a bar is its lobe.
    """
    import plotly.graph_objects as go

    lobes = level.lobes
    colors, rows = lobe_colors(len(lobes)), list(range(len(lobes)))
    words = [f"{quoted(names[lobe], 24)}  <b>{lobes[lobe].size:,}</b>" for lobe in rows]
    figure = go.Figure(
        go.Bar(
            x=[100 * one.company.value for one in lobes],
            y=rows,
            orientation="h",
            width=0.72,
            marker={
                "color": [
                    color if chosen in (None, lobe) else _faded(color)
                    for lobe, color in enumerate(colors)
                ]
            },
            customdata=rows,
            hovertext=[
                f"{quoted(names[lobe])}<br>{one.size:,} latents<br>"
                f"{one.company.value:.1%} of their nearest directions are of the lobe<br>"
                f"lobes shuffled: {one.company.mean:.1%} ± {one.company.spread:.1%}"
                for lobe, one in enumerate(lobes)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=[100 * one.company.mean for one in lobes],
        y=rows,
        mode="markers",
        marker={"symbol": "line-ns", "size": 13, "line": {"width": 2.5, "color": QUIET}},
        hovertemplate="lobes shuffled: %{x:.1f}%<extra></extra>",
    )
    # Words on the bars themselves would break plotly's selection of bars of unequal opacity.
    figure.add_scatter(
        x=[100 * one.company.value for one in lobes],
        y=rows,
        mode="text",
        text=[f"\u2002{one.company.value:.0%}" for one in lobes],
        textposition="middle right",
        hoverinfo="skip",
        cliponaxis=False,
    )
    top = max(100 * one.company.value for one in lobes)
    figure.update_xaxes(
        title="% of the same lobe",
        range=[0, min(112.0, 1.16 * top + 1)],
    )
    figure.update_yaxes(
        tickvals=rows, ticktext=words, autorange="reversed", showgrid=False, title=""
    )
    figure.update_layout(
        template=template(), height=86 + max(24, min(44, 520 // max(1, len(rows)))) * len(rows),
        margin={"l": 10, "r": 34, "t": 8, "b": 46},
    )  # fmt: skip
    return figure


def _faded(color: str) -> str:
    """A color of #rrggbb with less weight.

    >>> _faded("#0e7c72")
    'rgba(14,124,114,0.3)'
    """
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.3)"


def _size(n: int) -> int:
    return 3 if n > 20_000 else 4 if n > 4_000 else 7


def _steps(colors: Sequence[str]) -> list[list[Any]]:
    """A color scale of equal steps."""
    n = len(colors)
    return [[(place + side) / n, color] for place, color in enumerate(colors) for side in (0, 1)]
