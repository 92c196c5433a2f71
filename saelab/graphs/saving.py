r"""A graph on disk: one JSON file that says its version and is checked to the last digit.

{"format": "saelab-graph", "version": 1, "sha256": ..., "graph": {...}}

`sha256` is of the graph's own JSON, written without spaces, so a changed digit is noticed and
changed spacing is not. Numbers are written so that they read back to the same bits; a total that is
not known is null.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelab.errors import CheckpointError, SaelabError
from saelab.files import write_bytes
from saelab.graphs.node import Node
from saelab.graphs.pruning import Pruning

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["load", "read_strict", "save", "to_json"]

FORMAT = "saelab-graph"
VERSION = 1
_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_TENSORS = ("weight", "totals", "weights")
_MAY_BE_NONE = ("replacement", "completeness", "replacement_floor", "completeness_floor")
_WHOLE, _REAL, _TEXT = (int, type(None)), (float, type(None)), (str, type(None))
_NODE_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "kind": (str,),
    "layer": _WHOLE,
    "position": _WHOLE,
    "index": _WHOLE,
    "value": _REAL,
    "probability": _REAL,
    "label": (str,),
    "hook": _TEXT,
}


def to_json(graph: "AttributionGraph") -> dict[str, Any]:
    """Everything a graph says, as plain JSON without NaN."""
    return {
        "dtypes": {name: _dtype_name(getattr(graph, name)) for name in _TENSORS},
        "tokens": list(graph.tokens),
        "token_ids": list(graph.token_ids),
        "nodes": [asdict(node) for node in graph.nodes],
        "source": graph.source.tolist(),
        "target": graph.target.tolist(),
        "weight": graph.weight.tolist(),
        "totals": [None if math.isnan(total) else total for total in graph.totals.tolist()],
        "weights": graph.weights.tolist(),
        "groups": {name: list(ids) for name, ids in graph.groups.items()},
        "pinned": list(graph.pinned),
        "dropped": None if graph.dropped is None else graph.dropped.tolist(),
        "pruning": None if graph.pruning is None else _listed(asdict(graph.pruning)),
        "metadata": dict(graph.metadata),
    }


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(values))


def save(graph: "AttributionGraph", path: str | Path) -> Path:
    """Write a graph, atomically; see `AttributionGraph.save`."""
    body = _dump(to_json(graph))
    head = f'{{"format": "{FORMAT}", "version": {VERSION}, "sha256": "{_digest(body)}",\n"graph": '
    path = Path(path)
    write_bytes(path, f"{head}{body}}}\n".encode("ascii"))
    return path


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("ascii")).hexdigest()


def load(path: str | Path) -> "AttributionGraph":
    """Read a graph; see `AttributionGraph.load`."""
    path = Path(path)
    try:
        whole = read_strict(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a graph saelab wrote: {error}") from None
    if whole.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a graph saelab wrote: it has no format {FORMAT!r}. Read circuit-tracer "
            "and Neuronpedia files with saelab.graphs.read_viewer_json."
        )
    version = whole.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise CheckpointError(
            f"{path} has version {version!r}; this saelab reads up to {VERSION}. Upgrade saelab."
        )
    body = whole.get("graph")
    if not isinstance(body, dict) or whole.get("sha256") != _digest(_dump(body)):
        raise CheckpointError(
            f"{path} is not the file that was written: its SHA-256 differs from its content's "
            "(truncated or altered). Restore it, or trace the prompt again."
        )
    try:
        return from_json(body)
    except (SaelabError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} holds no sound graph: {error}") from None


def from_json(body: Mapping[str, Any]) -> "AttributionGraph":
    """The graph that `to_json` described; raises whatever is wrong with it."""
    from saelab.graphs.graph import AttributionGraph

    dtypes = {name: _DTYPES[body["dtypes"][name]] for name in _TENSORS}
    totals = [math.nan if total is None else total for total in body["totals"]]
    dropped = body["dropped"]
    if not isinstance(body["metadata"], dict):
        raise ValueError("metadata is no object")
    return AttributionGraph(
        nodes=tuple(_node(values) for values in body["nodes"]),
        source=torch.tensor(_only(body, "source", int), dtype=torch.int64),
        target=torch.tensor(_only(body, "target", int), dtype=torch.int64),
        weight=torch.tensor(_only(body, "weight", float), dtype=dtypes["weight"]),
        totals=torch.tensor(_only({"totals": totals}, "totals", float), dtype=dtypes["totals"]),
        weights=torch.tensor(_only(body, "weights", float), dtype=dtypes["weights"]),
        tokens=tuple(_only(body, "tokens", str)),
        token_ids=tuple(_only(body, "token_ids", int)),
        metadata=body["metadata"],
        groups={name: tuple(_only(body["groups"], name, str)) for name in body["groups"]},
        pinned=tuple(_only(body, "pinned", str)),
        dropped=None
        if dropped is None
        else torch.tensor(_only(body, "dropped", float), dtype=torch.float64),
        pruning=None if body["pruning"] is None else _pruning(body["pruning"]),
    )


def _only(body: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """A list of one type; torch would turn 1.5 into 1 and True into 1.0."""
    for value in body[name]:
        if type(value) is not kind:
            raise ValueError(f"{name} has {value!r}, which is no {kind.__name__}")
    return body[name]


def _node(values: Mapping[str, Any]) -> Node:
    for name, value in values.items():
        allowed = _NODE_TYPES[name]
        if type(value) not in allowed:
            raise ValueError(f"a node's {name} is {value!r}")
    return Node(**values)


def _pruning(values: dict[str, Any]) -> Pruning:
    known = {one.name for one in fields(Pruning)}
    if set(values) != known:
        raise ValueError(f"pruning has fields {sorted(values)}, not {sorted(known)}")
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            made[name] = tuple(map(tuple, value) if name == "dropped" else value)
            numbers = [one[1] for one in value] if name == "dropped" else value
        else:
            made[name] = value
            numbers: list[Any] = [] if value is None and name in _MAY_BE_NONE else [value]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"pruning has {name} {value!r}")
    return Pruning(**made)


def read_strict(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be anything.

    Raises:
        ValueError: It is missing, is no JSON, has NaN or a key twice, or is no object.
    """
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repeats,
        )
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError("there is no such file.") from None
    except RecursionError:
        raise ValueError("it is nested too deep.") from None
    except ValueError as error:  # also invalid UTF-8 and invalid JSON
        raise ValueError(f"it is no valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a JSON {type(value).__name__}.")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found
