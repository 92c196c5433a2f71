"""The only place of the explorer that opens anything: runs, atlases, dictionaries, models.

Paths come from the address bar, so each is looked up among the runs that were found under the
folder the explorer was started on, and never opened as given.
"""

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from explorer import style
from explorer.pushes import interventions

from saelab.atlas import Atlas
from saelab.atlas.comparing import Comparison
from saelab.errors import ConfigError
from saelab.geometry_survey import GeometrySurvey
from saelab.geometry_survey.saved import FOLDER as GEOMETRY
from saelab.latent_map import latent_map, map_points
from saelab.models import LanguageModel, load_model
from saelab.probing import SavedRoles, load_roles
from saelab.probing.saved_roles import FILE as ROLES
from saelab.prompts import DirectEffects, PromptReading, direct_effects, read_prompt
from saelab.run_folders import HarvestSource, dictionary_of, store_of
from saelab.run_summaries import RunSummary, find_runs
from saelab.sae import SAE
from saelab.steering import SideBySide, side_by_side

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

__all__ = [
    "Outline",
    "atlas",
    "comparison",
    "dictionary",
    "effects",
    "map_figure",
    "model",
    "model_from",
    "model_lock",
    "model_source",
    "points",
    "prompt",
    "roles",
    "root",
    "run",
    "runs",
    "stamp",
    "steered",
    "survey",
]

Outline = tuple[tuple[int, int], ...]
"""Corners of what was chosen on a map."""

model_lock = threading.Lock()
"""Sessions share one model; whoever runs it holds this."""


def root() -> Path:
    """The folder that the explorer was started on."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "runs").absolute()


def runs() -> dict[str, RunSummary]:
    """Every run under the root by its name; looked for again after five seconds."""
    return _runs(str(root()))


@st.cache_data(ttl=5, show_spinner=False)
def _runs(folder: str) -> dict[str, RunSummary]:
    return {one.name: one for one in find_runs(folder)}


def run(name: str) -> RunSummary:
    """One run.

    Raises:
        ConfigError: There is none of that name.
    """
    found = runs()
    if name not in found:
        raise ConfigError(
            f"There is no run {name!r} under {root()}; there are: {', '.join(found) or 'none'}."
        )
    return found[name]


def stamp(folder: Path) -> float:
    """When the folder's content last changed, so that a cache knows."""
    times = [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else []
    return max(times, default=0.0)


def atlas(name: str) -> Atlas | None:
    """The atlas of a run, or None if none was built."""
    summary = run(name)
    if not summary.has_atlas:
        return None
    return _atlas(str(summary.folder / "atlas"), stamp(summary.folder / "atlas"))


def points(name: str, layout: str) -> "DataFrame":
    """Every latent that fires, for the map; read again only when the atlas changes."""
    folder = run(name).folder / "atlas"
    return _points(str(folder), layout, stamp(folder))


def map_figure(
    name: str, layout: str, color: str, outline: Outline, ringed: int | None
) -> "Figure":
    """The map in the reader's theme; made once, since a figure of many points takes a while."""
    folder = run(name).folder / "atlas"
    dark = style.is_dark()
    return _map_figure(str(folder), layout, color, outline, ringed, dark, stamp(folder))


def dictionary(name: str) -> SAE:
    """The dictionary of a run."""
    folder = run(name).folder
    return _dictionary(str(folder), stamp(folder))


def model(name: str) -> LanguageModel:
    """The model a run's dictionary was trained on, loaded once for everybody."""
    return _model(model_source(name))


def model_from(source: str) -> LanguageModel:
    """A model by what it is loaded from, loaded once for everybody."""
    return _model(source)


def comparison(name: str, other: str) -> Comparison:
    """Which latents of one atlas another has too."""
    stamps = [stamp(run(one).folder / "atlas") for one in (name, other)]
    return _comparison(name, other, *stamps)


def prompt(name: str, text: str) -> PromptReading:
    """What the dictionary sees in a text."""
    return _prompt(name, text, stamp(run(name).folder))


def effects(name: str, text: str, position: int, target: int) -> DirectEffects:
    """What each latent of one token of a text adds to the logit of a next token."""
    return _effects(name, text, position, target, stamp(run(name).folder))


def steered(
    name: str, how: str, pushes: tuple[tuple[int, float], ...], text: str, n_tokens: int
) -> SideBySide:
    """A text continued as it is and with latents pushed."""
    return _steered(name, how, pushes, text, n_tokens, stamp(run(name).folder))


def survey(name: str) -> GeometrySurvey | None:
    """The geometry of a run's dictionary, or None if it was not measured."""
    folder = run(name).folder / GEOMETRY
    if not (folder / "geometry.json").exists():
        return None
    return _survey(str(folder), stamp(folder))


def roles(name: str) -> SavedRoles | None:
    """The roles of a run's latents, or None if they were not looked for."""
    file = run(name).folder / ROLES
    return _roles(str(file), file.stat().st_mtime) if file.is_file() else None


def model_source(name: str) -> str:
    """What the model of a run was loaded from."""
    return HarvestSource.of(store_of(run(name).folder)).model


@st.cache_resource(show_spinner="Opening the atlas …", max_entries=8)
def _atlas(folder: str, changed: float) -> Atlas:  # noqa: ARG001
    return Atlas.open(folder)


@st.cache_resource(show_spinner=False, max_entries=4)
def _points(folder: str, layout: str, changed: float) -> "DataFrame":
    return map_points(_atlas(folder, changed), layout)


@st.cache_resource(show_spinner=False, max_entries=16)
def _map_figure(
    folder: str,
    layout: str,
    color: str,
    outline: Outline,
    ringed: int | None,
    dark: bool,  # noqa: ARG001 - what `themed` looks at
    changed: float,
) -> "Figure":
    return style.themed(
        latent_map(_points(folder, layout, changed), layout, color, outline, ringed)
    )


@st.cache_resource(show_spinner="Comparing …", max_entries=16)
def _comparison(name: str, other: str, changed: float, other_changed: float) -> Comparison:  # noqa: ARG001
    one, two = atlas(name), atlas(other)
    if one is None or two is None:
        raise ConfigError(f"Comparing {name} with {other} needs an atlas of each.")
    return one.compare(two)


@st.cache_resource(show_spinner="Opening the dictionary …", max_entries=4)
def _dictionary(folder: str, changed: float) -> SAE:  # noqa: ARG001
    return dictionary_of(folder)


@st.cache_resource(show_spinner="Opening the survey …", max_entries=8)
def _survey(folder: str, changed: float) -> GeometrySurvey:  # noqa: ARG001
    return GeometrySurvey.open(folder)


@st.cache_resource(show_spinner=False, max_entries=8)
def _roles(file: str, changed: float) -> SavedRoles:  # noqa: ARG001
    return load_roles(file)


@st.cache_resource(show_spinner="Loading the language model …", max_entries=1)
def _model(source: str) -> LanguageModel:
    return load_model(source)


@st.cache_data(show_spinner="Reading the text …", max_entries=64)
def _prompt(name: str, text: str, changed: float) -> PromptReading:  # noqa: ARG001
    with model_lock:
        return read_prompt(dictionary(name), model(name), text)


@st.cache_data(show_spinner=False, max_entries=256)
def _effects(name: str, text: str, position: int, target: int, changed: float) -> DirectEffects:
    reading = _prompt(name, text, changed)
    with model_lock:
        return direct_effects(reading, dictionary(name), model(name), position, target)


@st.cache_data(show_spinner="Running the model twice …", max_entries=64)
def _steered(
    name: str,
    how: str,
    pushes: tuple[tuple[int, float], ...],
    text: str,
    n_tokens: int,
    changed: float,  # noqa: ARG001
) -> SideBySide:
    with model_lock:
        edits = interventions(dictionary(name), how, pushes)
        return side_by_side(model(name), edits, text, max_new_tokens=n_tokens)
