"""Attribution graphs: what a prompt's answer is made of, as nodes and signed edges.

    graph.prune(0.8).save("paris.json")
    graph.export("paris-neuronpedia.json", format="neuronpedia")
    save_page(graph, "paris.html")

Every exporter and viewer reads `AttributionGraph` and nothing else.
"""

from saelab.graphs.drawing import Drawing, answer_of, group_drawing, node_drawing
from saelab.graphs.effects import PredictedChange, predicted_change, pushes
from saelab.graphs.exporting import FORMATS
from saelab.graphs.figure import graph_figure
from saelab.graphs.graph import AttributionGraph
from saelab.graphs.grouping import GroupView, group_view
from saelab.graphs.labels import atlas_labels
from saelab.graphs.layered_figure import layered_figure
from saelab.graphs.node import Edge, Node
from saelab.graphs.page import save_page
from saelab.graphs.paths import Path, strongest_paths
from saelab.graphs.pruner import Pruner
from saelab.graphs.pruning import Pruning
from saelab.graphs.scores import Scores, scores
from saelab.graphs.viewer_json import viewer_query
from saelab.graphs.viewer_reading import read_viewer_json

__all__ = [
    "FORMATS",
    "AttributionGraph",
    "Drawing",
    "Edge",
    "GroupView",
    "Node",
    "Path",
    "PredictedChange",
    "Pruner",
    "Pruning",
    "Scores",
    "answer_of",
    "atlas_labels",
    "graph_figure",
    "group_drawing",
    "group_view",
    "layered_figure",
    "node_drawing",
    "predicted_change",
    "pushes",
    "read_viewer_json",
    "save_page",
    "scores",
    "strongest_paths",
    "viewer_query",
]
