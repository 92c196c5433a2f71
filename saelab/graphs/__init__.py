"""Attribution graphs: what a prompt's answer is made of, as nodes and signed edges.

    graph.prune(0.8).save("paris.json")
    graph.export("paris-neuronpedia.json", format="neuronpedia")
    save_page(graph, "paris.html")

Every exporter and viewer reads `AttributionGraph` and nothing else.
"""

from saelab.graphs.exporting import FORMATS
from saelab.graphs.figure import graph_figure
from saelab.graphs.graph import AttributionGraph
from saelab.graphs.grouping import GroupView, group_view
from saelab.graphs.labels import atlas_labels
from saelab.graphs.node import Edge, Node
from saelab.graphs.page import save_page
from saelab.graphs.paths import Path, strongest_paths
from saelab.graphs.pruning import Pruning
from saelab.graphs.scores import Scores, scores
from saelab.graphs.viewer_json import viewer_query
from saelab.graphs.viewer_reading import read_viewer_json

__all__ = [
    "FORMATS",
    "AttributionGraph",
    "Edge",
    "GroupView",
    "Node",
    "Path",
    "Pruning",
    "Scores",
    "atlas_labels",
    "graph_figure",
    "group_view",
    "read_viewer_json",
    "save_page",
    "scores",
    "strongest_paths",
    "viewer_query",
]
