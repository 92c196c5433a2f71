"""A graph out of the JSON of circuit-tracer or Neuronpedia.

Totals are not in these files, so nothing can be checked to close. Layers that were counted from 1
for the viewers' sake count from 0 again.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelab.errors import FormatError, SaelabError
from saelab.graphs.node import READ_OUTS, Kind, Node
from saelab.graphs.saving import read_strict
from saelab.graphs.viewer_nodes import VIRTUAL

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["read_viewer_json"]

_KINDS: dict[str, Kind] = {
    "cross layer transcoder": "latent",
    "transcoder": "latent",
    "lorsa": "latent",
    "mlp reconstruction error": "error",
    "lorsa error": "error",
    "embedding": "token",
    "logit": "logit",
    "bias": "bias",
}
_WRONG = (SaelabError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What a file of the wrong shape runs into, wherever it is wrong."""
_OUTPUT = re.compile(r'Output "(.*)" \(p=[0-9.e-]+\)', re.DOTALL)
_HEAD = re.compile(r"a\d+\.h\d+")


def read_viewer_json(path: str | Path) -> "AttributionGraph":
    """Read a graph that saelab exported, circuit-tracer wrote, or Neuronpedia offers.

    Raises:
        FormatError: The file is no such graph: what is wrong with it.
    """
    path = Path(path)
    try:
        return _graph(read_strict(path))
    except KeyError as error:
        raise FormatError(f"{path} is no attribution graph: it has no {error}.") from None
    except _WRONG as error:
        raise FormatError(f"{path} is no attribution graph: {error}") from None


def _graph(body: dict[str, Any]) -> "AttributionGraph":
    from saelab.graphs.graph import AttributionGraph

    metadata = body["metadata"]
    ours = metadata.get("saelab") or {}
    offset = ours.get("layer_offset", 0)
    nodes = tuple(_node(one, offset) for one in body["nodes"])
    places = {node.id: place for place, node in enumerate(nodes)}
    links = body["links"]
    for link in links:
        for end in ("source", "target"):
            if link[end] not in places:
                raise FormatError(f"a link has {end} {link[end]!r}, but no node has that id.")
    ids = dict.fromkeys(range(len(metadata["prompt_tokens"])), -1)
    ids |= {n.position: n.index for n in nodes if n.kind == "token" and n.index is not None}
    tokens = [str(token) for token in metadata["prompt_tokens"]]
    params = body.get("qParams") or {}
    return AttributionGraph(
        nodes=nodes,
        source=torch.tensor([places[link["source"]] for link in links], dtype=torch.int64),
        target=torch.tensor([places[link["target"]] for link in links], dtype=torch.int64),
        weight=_narrowest([float(link["weight"]) for link in links]),
        totals=torch.full((len(nodes),), math.nan),
        weights=_narrowest([(n.probability or 0.0) if n.kind in READ_OUTS else 0.0 for n in nodes]),
        tokens=tuple(tokens),
        token_ids=tuple(ours.get("token_ids") or (ids[place] for place in range(len(tokens)))),
        metadata={"imported": metadata},
        groups={str(group[0]): tuple(group[1:]) for group in params.get("supernodes") or []},
        pinned=tuple(params.get("pinnedIds") or ()),
    )


def _narrowest(numbers: list[float]) -> Tensor:
    """float32 where it holds every number exactly, as in a file made from float32."""
    wide = torch.tensor(numbers, dtype=torch.float64)
    return wide.float() if bool((wide.float().double() == wide).all()) else wide


def _node(one: dict[str, Any], offset: int) -> Node:
    name, kind = str(one["node_id"]), _KINDS.get(str(one["feature_type"]))
    if kind is None:
        raise FormatError(
            f"node {name!r} has feature_type {one['feature_type']!r}, not known here."
        )
    label = str(one.get("clerp") or "")
    index = _index(name, kind)
    if kind == "logit":
        found = _OUTPUT.fullmatch(label)
        label = found[1] if found else label
        kind = "target" if index is not None and index >= VIRTUAL else kind
    elif kind == "latent" and "_lor_" in name and _HEAD.fullmatch(label):
        kind = "head"
    inner = kind in ("latent", "error", "head", "bias")
    activation = one.get("activation")
    probability = one.get("token_prob")
    return Node(
        id=name,
        kind=kind,
        layer=int(one["layer"]) - offset if inner else None,
        position=int(one["ctx_idx"]),
        index=index,
        value=None if activation is None else float(activation),
        probability=float(probability) if kind in READ_OUTS and probability is not None else None,
        label=label,
        hook=None,
    )


def _index(name: str, kind: str) -> int | None:
    """The last number but one of an id; errors and biases have none."""
    parts = name.split("_")
    if kind in ("error", "bias") or len(parts) < 3:
        return None
    return int(parts[-2])
