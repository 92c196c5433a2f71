"""A graph as two tables, nodes.csv and edges.csv, that a spreadsheet can open safely.

A spreadsheet runs a cell that starts with =, +, - or @ as a formula, whoever wrote it. Text that
starts so (or with an apostrophe, so that nothing is ambiguous) gets an apostrophe in front; numbers
are left alone.
"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.files import write_bytes
from saelab.graphs.texts import one_line

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["safe_cell", "write_csv"]

_NODE_FIELDS = ("kind", "layer", "position", "index", "value", "probability", "hook")


def safe_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula.

    >>> safe_cell("=1+1"), safe_cell(" the")
    ("'=1+1", ' the')
    """
    shown = one_line(text)
    return f"'{shown}" if shown.lstrip()[:1] in tuple("=+-@'\uff1d\uff0b\uff0d\uff20") else shown


def write_csv(graph: "AttributionGraph", path: Path) -> Path:
    """Write nodes.csv and edges.csv into a folder; returns the folder."""
    group = {one: name for name, ids in graph.groups.items() for one in ids}
    influence, totals = graph.influence().tolist(), graph.totals.tolist()
    cumulative, residuals = graph.cumulative().tolist(), graph.residuals().tolist()
    weights = graph.weights.tolist()
    head = ["id", *_NODE_FIELDS, "token", "label", "group", "pinned", "weight", "influence"]
    rows: list[list[Any]] = [[*head, "cumulative", "total", "residual"]]
    for place, node in enumerate(graph.nodes):
        token = "" if node.position is None else graph.tokens[node.position]
        rows.append(
            [
                node.id,
                *(getattr(node, name) for name in _NODE_FIELDS),
                token,
                node.label,
                group.get(node.id, ""),
                node.id in graph.pinned,
                weights[place],
                influence[place],
                cumulative[place],
                totals[place],
                residuals[place],
            ]
        )
    write_bytes(path / "nodes.csv", _table(rows))
    columns = (graph.source, graph.target, graph.weight, graph.shares(), graph.edge_scores())
    edges: list[list[Any]] = [["source", "target", "weight", "share", "score"]]
    for source, target, *numbers in zip(*(one.tolist() for one in columns), strict=True):
        edges.append([graph.nodes[source].id, graph.nodes[target].id, *numbers])
    write_bytes(path / "edges.csv", _table(edges))
    return path


def _table(rows: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return safe_cell(value) if isinstance(value, str) else repr(value)
