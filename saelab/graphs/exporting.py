"""A graph for another program, by the name of a format."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import FormatError
from saelab.graphs.drawing_files import write_cytoscape, write_dot, write_graphml
from saelab.graphs.tables import write_csv
from saelab.graphs.viewer_json import write_circuit_tracer, write_neuronpedia

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["FORMATS", "export"]

FORMATS: dict[str, Callable[..., Path]] = {
    "neuronpedia": write_neuronpedia,
    "circuit-tracer": write_circuit_tracer,
    "graphml": write_graphml,
    "dot": write_dot,
    "cytoscape": write_cytoscape,
    "csv": write_csv,
}
"""Writers by name; each takes the graph, a path and its own options."""


def export(graph: "AttributionGraph", path: str | Path, format: str, **options: Any) -> Path:
    """Write a graph in a format; see `AttributionGraph.export`.

    Raises:
        FormatError: The format or an option is unknown, or the format cannot express the graph.
    """
    if format not in FORMATS:
        raise FormatError(f"Graphs have no format {format!r}; there are {', '.join(FORMATS)}.")
    write = FORMATS[format]
    known = list(inspect.signature(write).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise FormatError(
            f"Format {format!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}."
        )
    return write(graph, Path(path), **options)
