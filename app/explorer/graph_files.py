"""A graph as a file to take away, in any of the formats."""

import io
import re
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from saelab.graphs import AttributionGraph

__all__ = ["FILES", "downloads", "file_of"]

FILES = {
    "saelab": ("saelab JSON", ".json", "application/json", "All of it, to open here again"),
    "neuronpedia": ("Neuronpedia", ".json", "application/json", "To upload to Neuronpedia"),
    "graphml": ("GraphML", ".graphml", "application/xml", "For Gephi, yEd, networkx"),
    "dot": ("DOT", ".dot", "text/vnd.graphviz", "For Graphviz"),
    "cytoscape": ("Cytoscape", ".json", "application/json", "For cytoscape.js"),
    "csv": ("CSV", ".zip", "application/zip", "nodes.csv and edges.csv, for a spreadsheet"),
}
"""Name, ending, type and use of each format."""


def downloads(graph: AttributionGraph) -> None:
    """A button per format; a file is made when its button is pressed."""
    columns = st.columns(len(FILES))
    for column, (name, (label, ending, mime, use)) in zip(columns, FILES.items(), strict=True):
        make: Callable[[], bytes] = partial(file_of, graph, name)
        column.download_button(
            label, make, slug(graph) + ending, mime, key=f"as {name}", help=use,
            on_click="ignore", width="stretch",
        )  # fmt: skip


def file_of(graph: AttributionGraph, format: str) -> bytes:
    """The content of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{slug(graph)}.json"
        if format == "saelab":
            return graph.save(path).read_bytes()
        written = graph.export(path, format=format)
        if not written.is_dir():
            return written.read_bytes()
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for one in sorted(written.iterdir()):
                archive.write(one, one.name)
        return whole.getvalue()


def slug(graph: AttributionGraph) -> str:
    """A file's name out of the prompt: letters, digits and dashes.

    Viewers refuse anything else.
    """
    words = re.findall(r"[A-Za-z0-9]+", "".join(graph.tokens[1:] or graph.tokens).lower())
    return "-".join(words)[:60].strip("-") or "graph"
