"""Where circuits come from: graphs on disk, prompts traced here, and the model to check them in.

As everywhere in the explorer, a name in the address is looked up among what was found under the
folder it was started on.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from explorer import loaders

from saelab.circuits import Reopened, TraceConfig, reopen, trace
from saelab.errors import CheckpointError, ConfigError, SaelabError
from saelab.files import read_json
from saelab.graphs import AttributionGraph, Pruner, answer_of, atlas_labels, pushes
from saelab.models import LanguageModel
from saelab.run_folders import dictionary_of
from saelab.sae import SAE

__all__ = [
    "Asked",
    "Source",
    "asked_model",
    "graphs",
    "pruner",
    "push",
    "reopened",
    "runs_by_hook",
    "source_of",
    "sources",
    "stamp",
    "whole",
    "why_not",
]

DEPTH = 4
"""Folders deeper than this under the root are not looked into."""
MAX_TOKENS = 64
"""Longest prompt that is traced here; the command line takes longer ones."""
_HEAD = b'{"format": "saelab-graph"'
_PARTS = frozenset({"sae", "atlas", "checkpoints", "activations", "tokens"})
_lock = threading.Lock()


class Asked(NamedTuple):
    """A graph: one on disk, or a prompt to trace."""

    saved: str = ""
    """Name of a graph on disk; empty for a prompt."""
    source: str = ""
    """Name of the dictionaries that a prompt is traced with."""
    prompt: str = ""
    """What is traced."""
    target: str = ""
    """The token to explain; the likeliest ones if empty."""
    latents: int = 0
    """How many latents are traced."""


class Source(NamedTuple):
    """Dictionaries to trace with."""

    name: str
    """Of the set, or of the run."""
    runs: tuple[str, ...]
    """The run of each."""
    model: str
    """Name of the model they were trained on; empty if unknown."""


def graphs() -> dict[str, Path]:
    """Every graph under the root by its name; looked for again after five seconds."""
    return {name: Path(path) for name, path in _graphs(str(loaders.root())).items()}


@st.cache_data(ttl=5, show_spinner=False)
def _graphs(folder: str) -> dict[str, str]:
    root = Path(folder)
    return {
        path.relative_to(root).as_posix().removesuffix(".json"): str(path)
        for path in sorted(_files(root, DEPTH))
    }


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Graphs in a folder, known by how the file begins, so that none is opened for nothing."""
    for inner in folder.iterdir() if folder.is_dir() else ():
        if inner.is_symlink() or inner.name.startswith("."):
            continue
        if inner.is_dir() and depth and inner.name not in _PARTS:
            yield from _files(inner, depth - 1)
        elif inner.suffix == ".json" and inner.is_file():
            with inner.open("rb") as file:
                if file.read(len(_HEAD)) == _HEAD:
                    yield inner


def sources() -> dict[str, Source]:
    """What prompts can be traced with: sets of transcoders, and every finished dictionary alone."""
    runs = loaders.runs()
    by_folder = {one.folder: name for name, one in runs.items() if one.finished}
    found: dict[str, Source] = {}
    for folder in sorted({one.folder.parent for one in runs.values()}):
        layers = _layers(str(folder), loaders.stamp(folder))
        members = tuple(by_folder.get(folder / one, "") for one in layers)
        if members and all(members):
            root = loaders.root()
            name = folder.name if folder == root else folder.relative_to(root).as_posix()
            found[name] = Source(name, members, runs[members[0]].model)
    for name in by_folder.values():
        found[name] = Source(name, (name,), runs[name].model)
    return found


@st.cache_data(show_spinner=False, max_entries=256)
def _layers(folder: str, changed: float) -> list[str]:  # noqa: ARG001
    """Names of the folders of a set's layers; none if it is no set."""
    if not (Path(folder) / "set.json").exists():
        return []
    try:
        listed = read_json(Path(folder) / "set.json", "a transcoder set's set.json")
        return [str(one["folder"]) for one in listed["layers"]]
    except (SaelabError, KeyError, TypeError):
        return []


def why_not(source: Source) -> str:
    """Why nothing can be traced with these dictionaries, as far as files say; "" if nothing is."""
    if not source.model:
        return f"{source.name} does not say which model it was trained on."
    found = asked_model(source)
    if Path(found).is_absolute() and not Path(found).exists():
        return f"The model {found} is no longer there."
    return ""


def asked_model(source: Source) -> str:
    """What the model is loaded from: as a harvest for the same model says, or its name."""
    runs = loaders.runs()
    alike = [name for name, one in runs.items() if one.model == source.model]
    for name in (*source.runs, *alike):
        try:
            return loaders.model_source(name)
        except SaelabError:
            continue
    return source.model


def source_of(asked: Asked, graph: AttributionGraph) -> Source | None:
    """The dictionaries a graph was traced with, or None if they are not under the root.

    Those of a set if all are; else the first run of each hook point and size.
    """
    known = sources()
    if not asked.saved:
        return known.get(asked.source)
    runs = loaders.runs()
    listed = graph.metadata.get("dictionaries") or []
    wanted = [(one.get("reads"), one.get("d_sae")) for one in listed]
    model = (graph.metadata.get("model") or {}).get("name")
    alone: dict[tuple[str, int], str] = {}
    for source in known.values():
        there = [(runs[name].hook, runs[name].d_sae) for name in source.runs]
        if wanted and source.model == model and sorted(there) == sorted(wanted):
            return source
        if len(there) == 1 and source.model == model:
            alone.setdefault(there[0], source.runs[0])
    members = tuple(alone.get(pair, "") for pair in wanted)
    return Source("", members, str(model)) if members and all(members) else None


def runs_by_hook(source: Source | None) -> dict[str, str]:
    """The run that reads each hook point."""
    runs = loaders.runs()
    return {runs[name].hook: name for name in (source.runs if source else ())}


def stamp(asked: Asked) -> float:
    """When the graph last changed; 0 for one that was traced here."""
    return _path(asked).stat().st_mtime if asked.saved else 0.0


def _path(asked: Asked) -> Path:
    found = graphs()
    if asked.saved not in found:
        raise ConfigError(
            f"There is no graph {asked.saved!r} under {loaders.root()}; there are: "
            f"{', '.join(found) or 'none'}."
        )
    return found[asked.saved]


def whole(
    asked: Asked, progress: Callable[[int, int, str], None] | None = None
) -> AttributionGraph:
    """The graph with the labels of atlases; a prompt is traced unless it was lately."""
    if asked.saved:
        with_atlas = tuple(name for name, one in loaders.runs().items() if one.has_atlas)
        return _saved(asked, str(_path(asked)), stamp(asked), with_atlas)
    kept = _traced()
    with _lock:
        if asked in kept:
            kept.move_to_end(asked)
            return kept[asked]
    source = _known(asked.source)
    config = TraceConfig(max_latents=asked.latents, max_tokens=MAX_TOKENS)
    targets = [asked.target] if asked.target else None
    model, dictionaries = _model(source), _dictionaries(source.runs)
    with loaders.model_lock:
        found = trace(model, dictionaries, asked.prompt, config, targets=targets, progress=progress)
    found = _with_labels(found, source)
    with _lock:
        kept[asked] = found
        while len(kept) > 8:
            kept.popitem(last=False)
    return found


@st.cache_resource(show_spinner=False)
def _traced() -> "OrderedDict[Asked, AttributionGraph]":
    """Graphs traced lately, for everybody."""
    return OrderedDict()


@st.cache_resource(show_spinner="Opening the graph …", max_entries=8)
def _saved(
    asked: Asked,
    path: str,
    changed: float,  # noqa: ARG001
    with_atlas: tuple[str, ...],  # noqa: ARG001 - labels come from these
) -> AttributionGraph:
    graph = AttributionGraph.load(path)
    return _with_labels(graph, source_of(asked, graph))


def _with_labels(graph: AttributionGraph, source: Source | None) -> AttributionGraph:
    atlases = {hook: loaders.atlas(run) for hook, run in runs_by_hook(source).items()}
    there = {hook: one for hook, one in atlases.items() if one is not None}
    return graph.with_labels(atlas_labels(there)) if there else graph


def pruner(asked: Asked) -> Pruner | None:
    """The whole graph with its influence and scores; None if it was pruned before it was saved."""
    return _pruner(asked, stamp(asked))


@st.cache_resource(show_spinner=False, max_entries=8)
def _pruner(asked: Asked, changed: float) -> Pruner | None:  # noqa: ARG001
    graph = whole(asked)
    return None if graph.pruning is not None else Pruner(graph)


def push(asked: Asked) -> dict[str, float]:
    """What each node adds to the answer, by id."""
    return _push(asked, stamp(asked))


@st.cache_resource(show_spinner=False, max_entries=8)
def _push(asked: Asked, changed: float) -> dict[str, float]:  # noqa: ARG001
    graph = whole(asked)
    answer = answer_of(graph)
    if answer is None:
        return {}
    names = [node.id for node in graph.nodes]
    return dict(zip(names, pushes(graph, answer).tolist(), strict=True))


def reopened(asked: Asked) -> Reopened:
    """The graph's prompt in the running model.

    Raises:
        CheckpointError: The dictionaries it was traced with are not under the root.
        DataError: They are others.
    """
    source = source_of(asked, whole(asked))
    if source is None:
        raise CheckpointError(
            "The dictionaries this graph was traced with are not under the folder the explorer was "
            "started on, so nothing can be measured in the model."
        )
    return _reopened(asked, stamp(asked), source)


@st.cache_resource(show_spinner="Running the model on the prompt …", max_entries=2)
def _reopened(asked: Asked, changed: float, source: Source) -> Reopened:  # noqa: ARG001
    # The graph first: tracing it again would wait for the lock that this holds.
    graph, model, dictionaries = whole(asked), _model(source), _dictionaries(source.runs)
    with loaders.model_lock:
        return reopen(model, dictionaries, graph)


def _known(name: str) -> Source:
    found = sources()
    if name not in found:
        raise ConfigError(f"There are no dictionaries {name!r}; there are: {', '.join(found)}.")
    return found[name]


def _model(source: Source) -> LanguageModel:
    return loaders.model_from(asked_model(source))


@st.cache_resource(show_spinner="Opening the dictionaries …", max_entries=2)
def _dictionaries(runs: tuple[str, ...]) -> list[SAE]:
    return [dictionary_of(loaders.run(name).folder) for name in runs]
