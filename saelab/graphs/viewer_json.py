"""A graph in the JSON that circuit-tracer's page and Neuronpedia read.

Both share one layout and differ in traps, each of which a test is named after:

- a logit's text must hold its token in double quotes and then "(p=0.123)";
- node ids must be unique over kinds, or all links go to one of two nodes;
- circuit-tracer's page hides a latent that is at more than two thirds of the positions, so with a
  prompt of one token it shows nothing at all;
- a graph whose highest layer is 0 is refused by Neuronpedia, so layers then count from 1;
- `influence` is the cumulative share, small for important nodes, and the slider keeps what is
  below `node_threshold`; embeddings and logits have none, so they always stay;
- Neuronpedia looks for its own dashboards if `schema_version` or a source set is given, and only
  otherwise for feature files at a URL of yours;
- it takes 1 KiB to 100 MiB, names of letters, digits, "_", "." and "-", and no NaN;
- kinds that it does not know sort behind the logits and spoil the scores it computes.

Source: safety-research/circuit-tracer and hijohnnylin/neuronpedia, as published.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from saelab.errors import FormatError
from saelab.files import format_bytes, write_bytes
from saelab.graphs.folding import Folded, fold
from saelab.graphs.saving import read_strict
from saelab.graphs.texts import one_line, visible
from saelab.graphs.viewer_nodes import layer_offset, viewer_ids, viewer_nodes

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["viewer_query", "write_circuit_tracer", "write_neuronpedia"]

SMALLEST, LARGEST = 1024, 100 * 1024 * 1024
INDEX = "graph-metadata.json"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def write_circuit_tracer(
    graph: "AttributionGraph",
    path: Path,
    *,
    scan: str | None = None,
    transcoders: Sequence[str] = (),
    n_layers: int | None = None,
) -> Path:
    """Write `<slug>.json` and its entry in `graph-metadata.json` beside it, as the page wants.

    Args:
        graph: Pruned, as a rule.
        path: The file; its name without ".json" is the slug.
        scan: Name of the dictionaries; the metadata's model, if not given.
        transcoders: Name of each layer's dictionary.
        n_layers: Layers of the model; the metadata's, or else the highest layer and one.

    Raises:
        FormatError: The graph has one token only, or a name that the page refuses.
    """
    if len(graph.tokens) < 2:
        raise FormatError(
            "circuit-tracer's page hides everything in a prompt of one token (it drops what is at "
            "more than two thirds of the positions). Trace a longer prompt, or export as "
            "neuronpedia."
        )
    body = _body(graph, path, scan, n_layers, attention_types=False)
    body["metadata"] |= {"transcoder_list": list(transcoders), "schema_version": 1}
    _warn_of_hidden(body)
    index = _index_with(path.parent / INDEX, body["metadata"])
    write_bytes(path, _dump(body))
    write_bytes(path.parent / INDEX, _dump(index))
    return path


def write_neuronpedia(
    graph: "AttributionGraph",
    path: Path,
    *,
    scan: str | None = None,
    source_set: str | None = None,
    feature_url: str | None = None,
    description: str = "",
    n_layers: int | None = None,
) -> Path:
    """Write one file for Neuronpedia's upload.

    Args:
        graph: Pruned, as a rule.
        path: The file; its name without ".json" is the slug.
        scan: Neuronpedia's id of the model; the metadata's model, if not given.
        source_set: Its set of dictionaries with dashboards.
        feature_url: Where your own feature files are, one `<Cantor number>.json` a latent.
        description: Shown with the graph.
        n_layers: Layers of the model; the metadata's, or else the highest layer and one.

    Raises:
        FormatError: The options contradict each other, a name is refused or the file is too big.
    """
    if source_set and feature_url:
        raise FormatError(
            "Neuronpedia ignores feature_url when there is a source set; give one of the two."
        )
    body = _body(graph, path, scan, n_layers, attention_types=True)
    metadata = body["metadata"]
    if feature_url:
        metadata["feature_details"] = {"feature_json_base_url": feature_url.rstrip("/")}
    else:
        metadata["schema_version"] = 1
    if source_set:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    if description:
        said = metadata["info"]["description"]
        metadata["info"]["description"] = f"{visible(description)} {said}".strip()
    data = _dump(body)
    if len(data) > LARGEST:
        raise FormatError(
            f"The file would have {format_bytes(len(data))}, and Neuronpedia takes up to "
            f"{format_bytes(LARGEST)}. Prune the graph first: graph.prune(0.8)."
        )
    write_bytes(path, data.ljust(SMALLEST))  # spaces after JSON mean nothing
    return path


def viewer_query(graph: "AttributionGraph", slug: str, n_layers: int | None = None) -> str:
    """What to put after the address of circuit-tracer's page, which ignores groups in the file."""
    folded = fold(graph)
    ids = viewer_ids(folded, n_layers)
    pinned = ",".join(ids[one] for one in folded.graph.pinned)
    groups = json.dumps(_supernodes(folded, ids))
    return f"?slug={quote(slug)}&pinnedIds={quote(pinned)}&supernodes={quote(groups)}"


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False).encode("ascii")


def _body(
    graph: "AttributionGraph",
    path: Path,
    scan: str | None,
    n_layers: int | None,
    *,
    attention_types: bool,
) -> dict[str, Any]:
    folded = fold(graph)
    ids = viewer_ids(folded, n_layers)
    nodes = viewer_nodes(folded, ids, attention_types=attention_types)
    drawn = folded.graph
    names = [ids[node.id] for node in drawn.nodes]
    ends = zip(drawn.source.tolist(), drawn.target.tolist(), drawn.weight.tolist(), strict=True)
    return {
        "metadata": _metadata(graph, folded, path, scan),
        "qParams": {
            "pinnedIds": [ids[one] for one in drawn.pinned],
            "supernodes": _supernodes(folded, ids),
            "linkType": "both",
            "clickedId": next((one["node_id"] for one in nodes if one["is_target_logit"]), ""),
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [{"source": names[s], "target": names[t], "weight": w} for s, t, w in ends],
    }


def _supernodes(folded: Folded, ids: dict[str, str]) -> list[list[str]]:
    return [
        [one_line(name), *(ids[one] for one in group)]
        for name, group in folded.graph.groups.items()
    ]


def _metadata(
    graph: "AttributionGraph", folded: Folded, path: Path, scan: str | None
) -> dict[str, Any]:
    pruning = graph.pruning
    thresholds = {
        "node_threshold": 1.0 if pruning is None else pruning.node_threshold,
        "edge_threshold": 1.0 if pruning is None else pruning.edge_threshold,
    }
    try:
        version = packages.version("saelab")
    except packages.PackageNotFoundError:
        version = "unknown"
    model = re.sub(r"[^A-Za-z0-9_.-]+", "-", graph.model_name).strip("-")
    return {
        "slug": _checked("slug", path.name.removesuffix(".json")),
        "scan": _checked("scan", scan) if scan is not None else model or "unknown",
        "prompt_tokens": [visible(token) for token in graph.tokens],
        "prompt": visible("".join(graph.tokens)),
        "node_threshold": thresholds["node_threshold"],
        "info": {
            "description": _what_was_left_out(folded),
            "generator": {"name": "saelab", "version": version},
        },
        "pruning_settings": thresholds,
        "saelab": {"layer_offset": layer_offset(folded), "token_ids": list(graph.token_ids)},
    }


def _checked(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise FormatError(
            f"The {what} {name!r} is refused by the viewers; use letters, digits, '_', '.' and '-'."
            + (" It is the file's name without '.json'." if what == "slug" else "")
        )
    return name


def _what_was_left_out(folded: Folded) -> str:
    if not folded.left_out:
        return ""
    size = sum(map(abs, folded.left_out.values()))
    largest = max(folded.left_out, key=lambda name: abs(folded.left_out[name]))
    return (
        f"Biases have no place in this format and are left out: they contribute to "
        f"{len(folded.left_out)} nodes, {size:.4g} in all in absolute value, most to "
        f"{one_line(largest)} ({folded.left_out[largest]:+.4g})."
    )


def _warn_of_hidden(body: dict[str, Any]) -> None:
    """The page drops a latent that is at more than two thirds of the positions."""
    n_tokens = len(body["metadata"]["prompt_tokens"])
    counts = Counter(
        (node["layer"], node["feature"]) for node in body["nodes"] if node["activation"] is not None
    )
    hidden = [key for key, count in counts.items() if count > n_tokens * 2 / 3]
    if hidden:
        warnings.warn(
            f"circuit-tracer's page will hide {len(hidden)} latents that are at more than two "
            f"thirds of the {n_tokens} positions. They are in the file; Neuronpedia shows them.",
            stacklevel=2,
        )


def _index_with(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """The folder's index with this graph in it, in place of one of the same slug."""
    graphs: Any = []
    if path.exists():
        try:
            graphs = read_strict(path).get("graphs")
            others = [one for one in graphs if one["slug"] != metadata["slug"]]
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(
                f"{path} should list this folder's graphs but cannot be read: {error} Move it away "
                "and export again."
            ) from None
        return {"graphs": [*others, metadata]}
    return {"graphs": [metadata]}
