"""One node in the JSON of circuit-tracer and Neuronpedia: its ids, numbers and text.

Kind by kind, with l the layer, i the index and p the position:

    latent  {l}_{i}_{p}            cross layer transcoder   (also of one layer's transcoder)
            {l}_cro2_{i}_{p}       cross layer transcoder   (of a layer's second dictionary)
            {l}_lor_{i}_{p}        lorsa                    (of one that reads attention)
    error   {l}_error_mlp_{p}      mlp reconstruction error
            {l}_error_attn_{p}     lorsa error
    head    {l}_lor_{i}_{p}        lorsa
    token   E_{i}_{p}              embedding
    logit   {n_layers + 1}_{i}_{p} logit

circuit-tracer's page knows no lorsa, so there they are "cross layer transcoder" with text such as
"a5.h1", and attention errors are errors like any other.
"""

from typing import TYPE_CHECKING, Any

from saelab.errors import FormatError
from saelab.graphs.folding import Folded, reads_attention
from saelab.graphs.node import READ_OUTS, Node
from saelab.graphs.texts import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VIRTUAL", "cantor", "layer_offset", "viewer_ids", "viewer_nodes"]

VIRTUAL = 10_000_000
"""First index of read-outs that are no token: beyond every vocabulary."""
TRANSCODER, LORSA = "cross layer transcoder", "lorsa"
MLP_ERROR, LORSA_ERROR = "mlp reconstruction error", "lorsa error"


def cantor(x: int, y: int) -> int:
    """One number for a pair of numbers, as the viewers pair layer and index.

    >>> cantor(1, 3)
    13
    """
    return (x + y) * (x + y + 1) // 2 + y


def layer_offset(folded: Folded) -> int:
    """1 if layer 0 is the highest, which Neuronpedia takes for no layer at all; 0 otherwise.

    Raises:
        FormatError: Nothing in the graph has a layer.
    """
    layers = [node.layer for node in folded.graph.nodes if node.kind not in READ_OUTS]
    highest = max((layer for layer in layers if layer is not None), default=None)
    if highest is None:
        raise FormatError(
            "These viewers refuse a graph without any latent or error. Prune less, or export as "
            "graphml, dot, cytoscape or csv."
        )
    return int(highest == 0)


def viewer_ids(folded: Folded, n_layers: int | None) -> dict[str, str]:
    """The viewers' id of each node, by ours.

    Raises:
        FormatError: Two nodes would have one id.
    """
    offset = layer_offset(folded)
    known = folded.graph.metadata.get("n_layers") if n_layers is None else n_layers
    top = max((node.layer or 0) for node in folded.graph.nodes) + 1
    read_out_layer = max(top, known if isinstance(known, int) else 0) + offset + 1
    dictionaries = _dictionaries(folded)
    ids: dict[str, str] = {}
    owners: dict[str, str] = {}
    for place, node in enumerate(folded.graph.nodes):
        name = _id(node, _position(node, folded), offset, read_out_layer, place)
        if node.kind == "latent" and (nth := dictionaries[node.layer, node.hook]):
            layer, _, rest = name.partition("_")
            name = f"{layer}_cro{nth + 1}_{rest}"
        if name in owners:
            raise FormatError(
                f"Nodes {owners[name]!r} and {node.id!r} would both be {name!r} for the viewers: "
                "they are of one kind at one place. Export as graphml, or merge them."
            )
        owners[name] = node.id
        ids[node.id] = name
    return ids


def _dictionaries(folded: Folded) -> dict[tuple[int | None, str | None], int]:
    """Of each hook point with latents, how many others of its layer and kind come before it."""
    found: dict[tuple[int | None, str | None], int] = {}
    counts: dict[tuple[int | None, bool], int] = {}
    for node in folded.graph.nodes:
        key = (node.layer, node.hook)
        if node.kind == "latent" and key not in found:
            kind = (node.layer, reads_attention(node))
            found[key] = counts[kind] = counts.get(kind, -1) + 1
    return found


def _id(node: Node, position: int, offset: int, read_out_layer: int, place: int) -> str:
    layer = (node.layer or 0) + offset
    if node.kind in READ_OUTS:
        return f"{read_out_layer}_{_index(node, place)}_{position}"
    if node.kind == "token":
        return f"E_{_index(node, place)}_{position}"
    if node.kind == "error":
        return f"{layer}_error_{'attn' if reads_attention(node) else 'mlp'}_{position}"
    if node.kind == "head" or reads_attention(node):
        return f"{layer}_lor_{_index(node, place)}_{position}"
    return f"{layer}_{_index(node, place)}_{position}"


def _index(node: Node, place: int) -> int:
    """A read-out that is no token gets an index beyond every vocabulary."""
    if node.kind == "target":
        return VIRTUAL + place
    return place if node.index is None else node.index


def _position(node: Node, folded: Folded) -> int:
    last = max(len(folded.graph.tokens) - 1, 0)
    return last if node.position is None else node.position


def viewer_nodes(
    folded: Folded, ids: "Mapping[str, str]", *, attention_types: bool
) -> list[dict[str, Any]]:
    """Every node as the viewers want it.

    Args:
        folded: The graph.
        ids: As `viewer_ids` gives them.
        attention_types: Whether the viewer knows lorsa and lorsa errors: Neuronpedia does.
    """
    weights = folded.graph.weights.tolist()
    read_outs = [at for at, node in enumerate(folded.graph.nodes) if node.kind in READ_OUTS]
    top = max(read_outs, key=lambda at: weights[at], default=-1)
    found = []
    for place, node in enumerate(folded.graph.nodes):
        one = _common(node, ids[node.id], _position(node, folded))
        if node.kind in READ_OUTS:
            one |= _read_out(node, ids[node.id], weights[place], place)
            one["is_target_logit"] = place == top
        elif node.kind == "token":
            one |= {"feature": node.position, "layer": "E", "feature_type": "embedding"}
        else:
            one |= _inner(node, layer_offset(folded), attention_types)
            one["influence"] = folded.cumulative[place]
        found.append(one)
    return found


def _common(node: Node, name: str, position: int) -> dict[str, Any]:
    return {
        "node_id": name,
        "jsNodeId": name,
        "ctx_idx": position,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "token_prob": 0.0,
        "is_target_logit": False,
        "clerp": one_line(node.label),
        "influence": None,
        "activation": node.value if node.kind == "latent" else None,
    }


def _read_out(node: Node, name: str, weight: float, place: int) -> dict[str, Any]:
    """Both viewers cut the text at its quotes and at "(p=", and fail where there is none."""
    text = one_line(node.label or f"{node.kind} {_index(node, place)}")
    text = text.replace('"', "\u201d").replace("(p=", "(p\u2009=")
    probability = weight if node.probability is None else node.probability
    return {
        "feature": _index(node, place),
        "layer": name.partition("_")[0],
        "feature_type": "logit",
        "token_prob": probability,
        "clerp": f'Output "{text}" (p={probability:.3f})',
        "isLogit": True,
        "activation": node.value,
    }


def _inner(node: Node, offset: int, attention_types: bool) -> dict[str, Any]:
    layer, attention = (node.layer or 0) + offset, reads_attention(node) and attention_types
    if node.kind == "error":
        kind = LORSA_ERROR if attention else MLP_ERROR
        return {"feature": -1, "layer": str(layer), "feature_type": kind}
    found: dict[str, Any] = {
        "feature": cantor(layer, node.index or 0),
        "layer": str(layer),
        "feature_type": LORSA if attention else TRANSCODER,
    }
    if node.kind == "head" and not node.label:
        found["clerp"] = f"a{node.layer}.h{node.index}"
    return found
