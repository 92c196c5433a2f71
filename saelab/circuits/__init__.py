"""Which computation inside the model led to what it says?

On the frozen linear map of one prompt, where every sum closes:

    freezing            attention patterns and norm scales held constant
    frozen              the affine map, from what is written to what is read
    dictionaries        what latents of any dictionary read and write
    terms               what adds to a read-out, and how much
    replacement         the prompt taken apart: latents, errors, tokens, positions, biases
    targets             which scalars are explained
    attribution         the most influential latents, taken apart in batches
    tracing             `trace`: a prompt in, an `AttributionGraph` out
    interventions       does the model do what the graph says when a latent is changed?
    reopening           the same for a graph from disk, whose prompt is run again
    attention_scores    why a head looks where it looks: a score as pairs of terms

By gradients through the whole model, over many prompts (sparse feature circuits):

    feature_sites       latents and errors of many rows
    feature_effects     how much each matters for a metric
    feature_edges       how much of it runs through which later node
    feature_circuits    the few that matter, and how faithful they are
"""

from saelab.circuits.attention_scores import AttentionScore, attention_score
from saelab.circuits.feature_circuits import (
    CurvePoint,
    FeatureCircuit,
    faithfulness_curve,
    find_feature_circuit,
    metric_with_only,
)
from saelab.circuits.feature_edges import METRIC, FeatureEdge, feature_edges
from saelab.circuits.feature_effects import EffectsConfig, FeatureEffects, feature_effects
from saelab.circuits.feature_sites import FeatureNode, feature_sites
from saelab.circuits.frozen import FrozenMap, ReadOuts
from saelab.circuits.interventions import (
    AblationCheck,
    Agreement,
    agreement,
    check_ablations,
    direct_effects,
    measured_effects,
    path_effects,
)
from saelab.circuits.reopening import Reopened, reopen
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.targets import LogitTarget
from saelab.circuits.terms import Contributions, Term
from saelab.circuits.tracing import TraceConfig, Traced, trace, trace_terms

__all__ = [
    "METRIC",
    "AblationCheck",
    "Agreement",
    "AttentionScore",
    "Contributions",
    "CurvePoint",
    "EffectsConfig",
    "FeatureCircuit",
    "FeatureEdge",
    "FeatureEffects",
    "FeatureNode",
    "FrozenMap",
    "LocalReplacement",
    "LogitTarget",
    "ReadOuts",
    "Reopened",
    "Term",
    "TraceConfig",
    "Traced",
    "agreement",
    "attention_score",
    "check_ablations",
    "direct_effects",
    "faithfulness_curve",
    "feature_edges",
    "feature_effects",
    "feature_sites",
    "find_feature_circuit",
    "measured_effects",
    "metric_with_only",
    "path_effects",
    "reopen",
    "trace",
    "trace_terms",
]
