"""Which components carry a behavior? Circuits of heads, MLPs and edges, found by intervention.

    pairs               clean prompts, patch prompts, answers, and what is measured
    graph               the components of a model, and the edges between them
    experiment          the model on the pairs, with components or edges taken away
    layout, checking    the parts of a block, and whether they make the model
    removal, slopes     one pass without some components; one backward pass for all edges
    effects             exact: nodes, edges, and paths, one pass each
    attribution         EAP and EAP-IG: all edges from a few backward passes
    acdc                edges, or components, removed one after another while predictions stay

Whether what was found is a circuit:

    ablations           one interface to components, edges and latents
    curves              faithfulness and completeness by size
    rankings            ROC, precision and rank correlation against what is known
    nulls               random circuits, permuted labels, a reset network
    results, figures, page

Where the answer is known, so that methods can be wrong:

    small_transformer   a model small enough for hand-set weights
    compiled_induction  an induction circuit, written
    trained_induction   an induction circuit, learned
"""

from saelab.patching.ablations import Ablation, EdgeAblation, LatentAblation, NodeAblation
from saelab.patching.acdc import AcdcResult, acdc, acdc_sweep
from saelab.patching.attribution import edge_attribution
from saelab.patching.curves import Curve, Point, curve, curve_sizes, shuffled_within_kinds
from saelab.patching.effects import edge_effects, node_effects, path_effect
from saelab.patching.experiment import Cost, Experiment
from saelab.patching.graph import ComponentGraph, Edge
from saelab.patching.nulls import null_curves, reset_model
from saelab.patching.page import comparison_page, save_comparison_page
from saelab.patching.pairs import Pairs, logit_difference, probability_difference, tokenized_pairs
from saelab.patching.rankings import average_precision, precision_recall, rank_correlation, roc_area
from saelab.patching.results import Comparison, Method
from saelab.patching.scores import EdgeScores, NodeScores

__all__ = [
    "Ablation",
    "AcdcResult",
    "Comparison",
    "ComponentGraph",
    "Cost",
    "Curve",
    "Edge",
    "EdgeAblation",
    "EdgeScores",
    "Experiment",
    "LatentAblation",
    "Method",
    "NodeAblation",
    "NodeScores",
    "Pairs",
    "Point",
    "acdc",
    "acdc_sweep",
    "average_precision",
    "comparison_page",
    "curve",
    "curve_sizes",
    "edge_attribution",
    "edge_effects",
    "logit_difference",
    "node_effects",
    "null_curves",
    "path_effect",
    "precision_recall",
    "probability_difference",
    "rank_correlation",
    "reset_model",
    "roc_area",
    "save_comparison_page",
    "shuffled_within_kinds",
    "tokenized_pairs",
]
