"""The map beside the table of latents: what was chosen on it is in the address."""

import streamlit as st
from explorer import address, loaders, panels, text

from saelab.atlas import Atlas
from saelab.errors import ConfigError
from saelab.latent_map import COLORS, LAYOUTS, inside, nearest_on_map

__all__ = ["chosen", "controls", "let_go", "show"]

CORNERS = 48
"""Corners of an outline that are kept: an address should fit in a message."""


def controls(atlas: Atlas) -> tuple[str, str]:
    """Which map, and what its colors say."""
    layouts = LAYOUTS if atlas.decoder_map is not None else LAYOUTS[1:]
    colors = [color for color in COLORS if color != COLORS[2] or atlas.signed]
    left, right = st.columns([0.42, 0.58], vertical_alignment="bottom")
    layout = left.selectbox("Map", layouts, key="map", bind="query-params", on_change=let_go)
    color = right.selectbox("Color", colors, key="color", bind="query-params")
    return layout or layouts[0], color or colors[0]


def chosen(name: str, layout: str, d_sae: int) -> list[int] | None:
    """The latents chosen on the map, or None if none were."""
    if near := st.query_params.get("near"):
        latent = address.integer("near", 0, below=d_sae)
        return nearest_on_map(loaders.points(name, layout), latent) or [int(near)]
    if outline := _outline():
        points = loaders.points(name, layout)
        return points["latent"][
            inside(outline, points["x"].to_numpy(), points["y"].to_numpy())
        ].tolist()
    return None


def show(name: str, atlas: Atlas, layout: str, color: str) -> None:
    """The map itself, and how it was made."""
    key, near = f"scatter {layout}", st.query_params.get("near", "")
    ringed = int(near) if near.isdecimal() and len(near) < 9 else None
    st.plotly_chart(
        loaders.map_figure(name, layout, color, _outline(), ringed),
        theme=None,
        key=key,
        on_select=lambda: _note(key),
        selection_mode=("points", "box", "lasso"),
    )
    st.html(f'<div class="sl sl-small">{_caption(atlas, layout)}</div>')
    if atlas.decoder_map is None:
        panels.empty(
            "There is no map by direction yet.",
            "It puts latents of similar decoder directions together.",
            f"saelab map {loaders.run(name).folder}",
        )


def let_go() -> None:
    """Forget what was chosen on the map."""
    for name in ("area", "near", "page"):
        st.query_params.pop(name, None)


def _note(key: str) -> None:
    """Write what the reader just chose into the address."""
    let_go()
    selection = st.session_state[key]["selection"]
    for shape in (*selection.get("lasso", []), *selection.get("box", [])):
        xs, ys = shape["x"], shape["y"]
        if len(xs) == 2:  # a box is two opposite corners
            xs, ys = [xs[0], xs[1], xs[1], xs[0]], [ys[0], ys[0], ys[1], ys[1]]
        step = max(1, -(-len(xs) // CORNERS))
        corners = [f"{x:.0f}.{y:.0f}" for x, y in list(zip(xs, ys, strict=True))[::step]]
        st.query_params["area"] = "_".join(corners)
        return
    points = selection.get("points", [])
    if points:
        latent = points[0]["customdata"]
        st.query_params["near"] = str(int(latent[0] if isinstance(latent, list) else latent))


def _outline() -> loaders.Outline:
    """The corners in the address.

    Raises:
        ConfigError: They are not corners.
    """
    found = address.text("area", longest=20 * CORNERS)
    try:
        corners = [tuple(map(int, corner.split("."))) for corner in found.split("_") if corner]
        outline = tuple((x, y) for x, y in corners if max(abs(x), abs(y)) < 10**6)
    except ValueError:
        raise ConfigError(f"area={found[:60]!r} in the address is not an outline.") from None
    return outline


def _caption(atlas: Atlas, layout: str) -> str:
    how = "Draw a lasso around some, or pick one to see it with its nearest."
    if layout == LAYOUTS[1]:
        return f"Every latent that fires: how often against how strongly. {how}"
    about = atlas.decoder_map or {}
    what = text.safe(str(about.get("describe", "")))
    if "explained" in about:
        return f"{what}: {about['explained']:.1%} of their variance. {how}"
    return f"{what}: near means alike, far says little. {how}"
