r"""A graph for programs that draw: GraphML, Graphviz DOT, cytoscape.js.

Labels are other people's text. GraphML cannot hold control characters at all, DOT reads backslash
and & as codes inside its quotes, and a cytoscape page may show a label as markup: characters that
are not shown are written as escapes, DOT's codes are doubled, and pages must not use innerHTML.

Blue is negative and orange positive, as in every figure; width is the share of the target's inputs.
"""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import FormatError
from saelab.files import write_bytes
from saelab.graphs.node import READ_OUTS, Node
from saelab.graphs.texts import one_line, visible
from saelab.plots import NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["write_cytoscape", "write_dot", "write_graphml"]

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_TYPES = {str: "string", int: "long", float: "double", bool: "boolean"}


def write_graphml(graph: "AttributionGraph", path: Path) -> Path:
    """Write GraphML: declared attributes, none that is empty, no NaN.

    Raises:
        FormatError: Two ids are the same once their control characters are escaped.
    """
    root = ET.Element("graphml", xmlns=_NAMESPACE)
    nodes = _node_records(graph)
    edges = _edge_records(graph)
    keys: dict[tuple[str, str], str] = {}
    for domain, records in (("node", nodes), ("edge", edges)):
        for name in dict.fromkeys(key for record in records for key in record):
            if name in ("id", "source", "target"):
                continue
            kind = next(type(record[name]) for record in records if name in record)
            key = keys[domain, name] = f"{domain}_{name}"
            ET.SubElement(
                root,
                "key",
                {"id": key, "for": domain, "attr.name": name, "attr.type": _TYPES[kind]},
            )
    drawn = ET.SubElement(root, "graph", id="attribution", edgedefault="directed")
    for record in nodes:
        _with_data(ET.SubElement(drawn, "node", id=record["id"]), "node", record, keys)
    for record in edges:
        element = ET.SubElement(drawn, "edge", source=record["source"], target=record["target"])
        _with_data(element, "edge", record, keys)
    ET.indent(root)
    write_bytes(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))
    return path


def _with_data(
    element: ET.Element, domain: str, record: dict[str, Any], keys: dict[tuple[str, str], str]
) -> None:
    for name, value in record.items():
        if (domain, name) in keys:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            ET.SubElement(element, "data", key=keys[domain, name]).text = text


def _node_records(graph: "AttributionGraph") -> list[dict[str, Any]]:
    """Each node's attributes that are not empty, as scalars."""
    influence, totals = graph.influence().tolist(), graph.totals.tolist()
    group = {one: name for name, ids in graph.groups.items() for one in ids}
    records, seen = [], set()
    for place, node in enumerate(graph.nodes):
        name = visible(node.id, keep="")
        if name in seen:
            raise FormatError(f"Two nodes would be {name!r} once control characters are escaped.")
        seen.add(name)
        record: dict[str, Any] = {
            "id": name,
            "label": one_line(_label(node, graph)),
            "kind": node.kind,
            "layer": node.layer,
            "position": node.position,
            "index": node.index,
            "value": node.value,
            "probability": node.probability,
            "hook": node.hook and one_line(node.hook),
            "influence": influence[place],
            "total": None if totals[place] != totals[place] else totals[place],
            "weight": float(graph.weights[place]) if node.kind in READ_OUTS else None,
            "group": one_line(group[node.id]) if node.id in group else None,
            "pinned": node.id in graph.pinned,
        }
        records.append({key: value for key, value in record.items() if value is not None})
    return records


def _edge_records(graph: "AttributionGraph") -> list[dict[str, Any]]:
    names = [visible(node.id, keep="") for node in graph.nodes]
    columns = (graph.source, graph.target, graph.weight, graph.shares())
    return [
        {"source": names[source], "target": names[target], "weight": weight, "share": share}
        for source, target, weight, share in zip(*(one.tolist() for one in columns), strict=True)
    ]


def _label(node: Node, graph: "AttributionGraph") -> str:
    if node.label:
        return node.label
    if node.kind == "token" and node.position is not None:
        return graph.tokens[node.position]
    return node.name


def write_dot(graph: "AttributionGraph", path: Path) -> Path:
    """Write Graphviz DOT: a layer a rank, inputs below, read-outs on top."""
    influence = graph.influence().tolist()
    largest = max(influence, default=0.0) or 1.0
    lines = [
        "digraph attribution {",
        '  rankdir="BT"; bgcolor="transparent"; outputorder="edgesfirst";',
        '  node [shape="box", style="rounded,filled", fillcolor="white", fontname="sans-serif"];',
        '  edge [arrowsize="0.5"];',
    ]
    ranks: dict[int, list[str]] = {}
    for place, node in enumerate(graph.nodes):
        height = 1 + influence[place] / largest
        lines.append(
            f"  n{place} [label={_quoted(one_line(_label(node, graph), 40))}, "
            f"tooltip={_quoted(node.id + ': ' + node.name)}, class={_quoted(node.kind)}, "
            f'penwidth="{height:.3g}"];'
        )
        ranks.setdefault(_rank(node), []).append(f"n{place}")
    for rank in sorted(ranks):
        lines.append("  { rank=same; " + "; ".join(ranks[rank]) + "; }")
    for record, source, target in zip(
        _edge_records(graph), graph.source.tolist(), graph.target.tolist(), strict=True
    ):
        color = POSITIVE if record["weight"] > 0 else NEGATIVE
        width = 0.3 + 5 * record["share"]
        lines.append(
            f'  n{source} -> n{target} [color="{color}", penwidth="{width:.3g}", '
            f'tooltip="{record["weight"]:+.6g}"];'
        )
    write_bytes(path, ("\n".join(lines) + "\n}\n").encode())
    return path


def _rank(node: Node) -> int:
    if node.kind in READ_OUTS:
        return 1 << 30
    return -1 if node.layer is None else node.layer


def _quoted(text: str) -> str:
    r"""A DOT string that shows as its text: \N and &amp; mean something else inside quotes."""
    shown = one_line(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{shown}"'


def write_cytoscape(graph: "AttributionGraph", path: Path) -> Path:
    """Write the elements of a cytoscape.js graph, placed by position and layer.

    Groups are compound nodes. Their ids start with "group:", and those of nodes with "node:".
    """
    known = {one: name for name, ids in graph.groups.items() for one in ids}
    columns: dict[tuple[int, int], int] = {}
    nodes: list[dict[str, Any]] = [
        {"data": {"id": f"group:{place}", "label": one_line(name), "kind": "group"}}
        for place, name in enumerate(graph.groups)
    ]
    group_ids = {name: f"group:{place}" for place, name in enumerate(graph.groups)}
    top = max((node.layer or 0) for node in graph.nodes) + 1
    for node, record in zip(graph.nodes, _node_records(graph), strict=True):
        data = {**record, "id": f"node:{record['id']}"}
        if node.id in known:
            data["parent"] = group_ids[known[node.id]]
        layer = top if node.kind in READ_OUTS else _rank(node)
        column = len(graph.tokens) - 1 if node.position is None else node.position
        nth = columns[layer, column] = columns.get((layer, column), -1) + 1
        place = {"x": 160 * column + 30 * (nth % 5), "y": -120 * layer - 20 * (nth // 5)}
        nodes.append({"data": data, "position": place})
    edges = [
        {
            "data": {
                **record,
                "id": f"edge:{place}",
                "source": f"node:{record['source']}",
                "target": f"node:{record['target']}",
            }
        }
        for place, record in enumerate(_edge_records(graph))
    ]
    body = {"elements": {"nodes": nodes, "edges": edges}, "layout": {"name": "preset"}}
    write_bytes(path, json.dumps(body, ensure_ascii=True, allow_nan=False, indent=1).encode())
    return path
