"""Do latents that occur together lie together? The map by lobe, and what each lobe is about."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st
from explorer import address, exports, loaders, panels, text
from explorer.lobe_tables import all_lobes, lobe_names, lobe_words, one_lobe

from saelab.atlas import Atlas
from saelab.geometry_survey import GeometrySurvey, LobeLevel
from saelab.latent_map import COLORS, LAYOUTS
from saelab.lobe_figures import company_figure, lobe_map

if TYPE_CHECKING:
    import numpy as np

__all__ = ["show"]

PAINT = ("lobe", "cluster by angle", COLORS[0])
"""What the color of a point may say."""


def show(name: str, survey: GeometrySurvey) -> None:
    """The part of the page."""
    if not survey.levels:
        st.html(
            '<div class="sl sl-small">The text was too short for lobes: too few latents occur in '
            "five chunks of it or more. Survey more tokens, or make chunks shorter.</div>"
        )
        return
    bar = st.columns([0.12, 0.22, 0.36, 0.3], vertical_alignment="bottom")
    level_name, paint = _controls(bar, survey)
    level = survey.levels[level_name]
    atlas = loaders.atlas(name)
    names = lobe_names(level, atlas)
    with bar[2]:
        chosen = _chosen(level, names)
    left, right = st.columns([0.52, 0.48], gap="medium")
    with left:
        _map(name, survey, level_name, names, chosen, paint)
    with right:
        panels.heading("Do they lie together?", "nearest directions of one's lobe; mark: shuffled")
        key = f"company {level_name}"
        exports.chart(
            company_figure(level, names, chosen),
            f"{level_name}_lobes",
            lambda: _lobe_rows(level, names, atlas),
            key=key,
            on_pick=lambda: _note(key),
        )
    _numbers(level)
    if chosen is None:
        all_lobes(name, level, names, atlas)
    else:
        one_lobe(name, level.lobes[chosen], names[chosen], chosen, atlas)


def _controls(columns: Sequence[Any], survey: GeometrySurvey) -> tuple[int, str]:
    options = [str(number) for number in survey.levels]
    middle = options[min(1, len(options) - 1)]
    level = columns[0].selectbox(
        "Lobes", options, index=options.index(middle), key="lobes", bind="query-params",
        on_change=_forget,
    )  # fmt: skip
    paint = columns[1].selectbox("Color", PAINT, key="color", bind="query-params")
    return int(level or middle), paint or PAINT[0]


def _chosen(level: LobeLevel, names: Mapping[int, str]) -> int | None:
    """The lobe in the address, and a box to choose another."""
    n = len(level.lobes)
    asked = st.query_params.get("lobe")
    current = None if asked is None else address.integer("lobe", 0, below=n)
    options = [None, *range(n)]
    picked = st.selectbox(
        "Look at one",
        options,
        index=options.index(current),
        format_func=lambda lobe: "all lobes" if lobe is None else f"{lobe}: {names[lobe]}",
        key=f"one of {n} now {current}",
    )
    if picked != current:
        _forget()
        if picked is not None:
            st.query_params["lobe"] = str(picked)
        st.rerun()
    return current


def _forget() -> None:
    st.query_params.pop("lobe", None)


def _note(key: str) -> None:
    points = st.session_state[key]["selection"].get("points", [])
    _forget()
    if points and points[0].get("customdata") is not None:
        value = points[0]["customdata"]
        st.query_params["lobe"] = str(int(value[0] if isinstance(value, list) else value))


def _map(
    name: str,
    survey: GeometrySurvey,
    level_name: int,
    names: Mapping[int, str],
    chosen: int | None,
    paint: str,
) -> None:
    atlas = loaders.atlas(name)
    if atlas is None or atlas.decoder_map is None:
        verb = "atlas" if atlas is None else "map"
        panels.empty(
            "There is no map of this dictionary yet.",
            "It puts latents of similar decoder directions together, to be colored by lobe.",
            f"saelab {verb} {loaders.run(name).folder}",
        )
        return
    points = loaders.points(name, LAYOUTS[0])
    groups = (survey.regions_of if paint == PAINT[1] else survey.lobes_of)(level_name).numpy()
    of_point = groups[points["latent"].to_numpy()]
    if paint == PAINT[2]:
        figure = loaders.map_figure(name, LAYOUTS[0], COLORS[0], (), None)
    elif paint == PAINT[1]:
        clusters = {number: f"cluster {number}" for number in range(level_name)}
        figure = lobe_map(points, of_point, clusters, {}, None)
    else:
        level = survey.levels[level_name]
        few = len(level.lobes) <= 12 or chosen is not None
        figure = lobe_map(points, of_point, names, _places(points, level) if few else {}, chosen)
    exports.chart(
        figure,
        f"map_{level_name}_lobes",
        lambda: _map_rows(points, survey, level_name),
        key=f"map {level_name} {paint} {chosen}",
    )
    st.html(
        f'<div class="sl sl-small">{text.safe(str(atlas.decoder_map.get("describe", "")))}: near '
        "means alike, far says little. Gray: latents too rare or too common to be in a lobe."
        "</div>"
    )


def _places(points: Any, level: LobeLevel) -> dict[int, tuple[float, float]]:
    """Where the names go: the middle of a lobe's most characteristic latents, or free room below.

    Places are those of the map, from -10,000 to 10,000.
    """
    found: dict[int, tuple[float, float]] = {}
    by_latent = points.set_index("latent")
    for number, lobe in enumerate(level.lobes):
        some = by_latent.loc[by_latent.index.intersection(list(lobe.characteristic))]
        if not len(some):
            continue
        x, y = float(some["x"].median()), float(some["y"].median())
        while any(abs(x - a) < 5600 and abs(y - b) < 850 for a, b in found.values()):
            y -= 300
        found[number] = (x, y)
    return found


def _numbers(level: LobeLevel) -> None:
    pairs = [
        (
            f"of nearest directions are of one's own lobe (shuffled {level.company.mean:.0%})",
            f"{level.company.value:.0%}",
        ),
        (
            f"mutual information with clusters by angle (shuffled {level.ami.mean:.3f})",
            f"{level.ami.value:.3f}",
        ),
    ]
    if level.accuracy is not None:
        pairs.append(
            (
                f"of lobes told from a direction, balanced (shuffled {level.accuracy.mean:.0%})",
                f"{level.accuracy.value:.0%}",
            )
        )
    panels.stats(pairs)


def _lobe_rows(
    level: LobeLevel, names: Mapping[int, str], atlas: Atlas | None
) -> list[dict[str, Any]]:
    return [
        {
            "lobe": number,
            "name": names[number],
            "latents": lobe.size,
            "same_lobe_share": lobe.company.value,
            "shuffled_mean": lobe.company.mean,
            "shuffled_sd": lobe.company.spread,
            "p": lobe.company.p,
            "tokens": " ".join(lobe_words(lobe, atlas)),
            "characteristic": " ".join(map(str, lobe.characteristic)),
        }
        for number, lobe in enumerate(level.lobes)
    ]


def _map_rows(points: Any, survey: GeometrySurvey, level: int) -> Sequence[dict[str, Any]]:
    lobes: np.ndarray = survey.lobes_of(level).numpy()
    regions: np.ndarray = survey.regions_of(level).numpy()
    return [
        {
            "latent": int(row["latent"]),
            "x": int(row["x"]) / 10_000,
            "y": int(row["y"]) / 10_000,
            "density": float(row["density"]),
            "lobe": int(lobes[int(row["latent"])]),
            "cluster_by_angle": int(regions[int(row["latent"])]),
            "label": str(row["label"]),
        }
        for row in points.to_dict("records")
    ]
