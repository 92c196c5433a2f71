"""Which few latents carry a behavior? Sparse feature circuits, and how faithful they are.

    faithfulness = (m(C) - m(none)) / (m(all) - m(none))
    completeness = the faithfulness of everything but C; 0 if C is all that matters

m(C) is the metric with every node outside C at its mean over other inputs, position by position,
or at zero. Sites are ablated in the model's order, and each is encoded anew from what the ablated
sites before it left. Places without a dictionary, and position 0 where asked for, stay as they are.

Source: Marks et al. 2025 (arXiv 2403.19647), section 3.2.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits.feature_edges import FeatureEdge, feature_edges
from saelab.circuits.feature_effects import (
    Aggregation,
    EffectsConfig,
    FeatureEffects,
    Metric,
    feature_effects,
    rowwise,
)
from saelab.circuits.feature_sites import FeatureNode, FeatureSite, feature_sites, states
from saelab.errors import ConfigError, ShapeError
from saelab.models import Edit, LanguageModel
from saelab.sae import SAE

__all__ = [
    "CurvePoint",
    "FeatureCircuit",
    "faithfulness_curve",
    "find_feature_circuit",
    "metric_with_only",
]

Errors = Literal["circuit", "all", "none"]
"""Which errors stay: those in the circuit, all, or none."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class FeatureCircuit:
    """Nodes and edges above their thresholds, with their effects."""

    effects: FeatureEffects
    """Of every node, also of those outside the circuit."""
    nodes: Mapping[FeatureNode, float]
    """Effect by node, the largest first."""
    edges: Mapping[FeatureEdge, float]
    """Effect by edge, the largest first."""


@final
@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One circuit of a sweep over thresholds."""

    threshold: float
    """Effects larger than this are in the circuit."""
    n_nodes: int
    """How many nodes it has."""
    faithfulness: float
    """1 if the circuit does all that the model does, 0 if it does nothing."""
    completeness: float
    """Faithfulness of the model without the circuit; 0 is best."""


def find_feature_circuit(
    model: LanguageModel,
    dictionaries: Mapping[str, SAE] | Sequence[SAE],
    clean: Int[Tensor, "row pos"],
    metric: Metric,
    patch: Int[Tensor, "patch_row patch_pos"] | None = None,
    config: EffectsConfig | None = None,
    *,
    node_threshold: float = 0.1,
    edge_threshold: float = 0.01,
    aggregation: Aggregation = "sum",
    progress: Callable[[int, int, str], None] | None = None,
) -> FeatureCircuit:
    """Find the nodes whose mean effect is large, and the edges between them.

    Args:
        model: The running model.
        dictionaries: Autoencoders or transcoders of any places.
        clean: Token ids the model is run on.
        metric: What is measured on the logits, one number a row.
        patch: Token ids that values are taken from, row by row; zeros if None.
        config: How effects are estimated.
        node_threshold: In units of the metric, on the mean over rows.
        edge_threshold: Likewise.
        aggregation: Whether positions are nodes of their own ("none") or summed.
        progress: Called with (rows done, rows in all, what).
    """
    sites = feature_sites(model, dictionaries)
    effects = feature_effects(
        model, sites, clean, metric, patch, config, aggregation=aggregation, progress=progress
    )
    nodes = effects.nodes(node_threshold)
    edges = feature_edges(
        model, sites, list(nodes), clean, metric, patch, config, progress=progress
    )
    large = {edge: value for edge, value in edges.items() if abs(value) > edge_threshold}
    ordered = dict(sorted(large.items(), key=lambda one: -abs(one[1])))
    return FeatureCircuit(effects, nodes, ordered)


@torch.no_grad()
def metric_with_only(
    model: LanguageModel,
    sites: Sequence[FeatureSite],
    nodes: Collection[FeatureNode],
    tokens: Int[Tensor, "row pos"],
    metric: Metric,
    baseline: Int[Tensor, "baseline_row baseline_pos"] | None = None,
    *,
    errors: Errors = "circuit",
    complement: bool = False,
) -> float:
    """Mean metric with every node outside a circuit ablated.

    Args:
        model: The running model.
        sites: Of `feature_sites`.
        nodes: The circuit.
        tokens: Inputs; others than the circuit was found on.
        metric: What is measured.
        baseline: Inputs whose mean values, position by position, stand in; zeros if None.
        errors: Which errors stay.
        complement: Whether the circuit is ablated and all else stays.

    Raises:
        ShapeError: Baseline and tokens differ in length.
    """
    if baseline is not None and baseline.shape[1] != tokens.shape[1]:
        raise ShapeError(
            f"Baseline rows have {baseline.shape[1]} tokens and inputs {tokens.shape[1]}; means "
            "are taken position by position, so give rows of one length."
        )
    means = None if baseline is None else states(model, sites, baseline)
    edits: dict[str, Edit] = {}
    for n, site in enumerate(sites):
        keep, keep_error = _kept(site, nodes, tokens.shape[1], errors, complement)
        stand_in = None if means is None else (means[n].latents.mean(0), means[n].error.mean(0))
        edits |= _ablation(site, keep, keep_error, stand_in, edits)
    with model.editing(edits):
        return float(rowwise(metric, model.logits(tokens)).mean())


def faithfulness_curve(
    model: LanguageModel,
    effects: FeatureEffects,
    tokens: Int[Tensor, "row pos"],
    metric: Metric,
    baseline: Int[Tensor, "baseline_row baseline_pos"] | None = None,
    *,
    thresholds: Sequence[float],
    errors: Errors = "circuit",
) -> list[CurvePoint]:
    """Faithfulness and completeness of the circuits at several thresholds, two passes each.

    Args:
        model: The running model.
        effects: What ranks the nodes.
        tokens: Inputs; others than the effects were found on.
        metric: What is measured.
        baseline: Inputs whose means stand in for what is ablated; zeros if None.
        thresholds: On the size of a node's effect.
        errors: Which errors stay; of two circuits compare only those of one kind.

    Raises:
        ConfigError: Ablating everything leaves the metric as it is.
    """

    def m(nodes: Collection[FeatureNode], complement: bool) -> float:
        return metric_with_only(
            model,
            effects.sites,
            nodes,
            tokens,
            metric,
            baseline,
            errors=errors,
            complement=complement,
        )

    with torch.no_grad():
        whole = float(rowwise(metric, model.logits(tokens)).mean())
    nothing = m([], False)
    if abs(whole - nothing) < 1e-9 * max(abs(whole), 1e-9):
        raise ConfigError(
            f"The metric is {whole:.3g} with and without all nodes, so no circuit can be faithful "
            "to it. Use another metric, or dictionaries of places that it depends on."
        )
    points = []
    for threshold in thresholds:
        nodes = effects.nodes(threshold)
        points.append(
            CurvePoint(
                threshold,
                len(nodes),
                (m(nodes, False) - nothing) / (whole - nothing),
                (m(nodes, True) - nothing) / (whole - nothing),
            )
        )
    return points


def _kept(
    site: FeatureSite,
    nodes: Collection[FeatureNode],
    n_pos: int,
    errors: Errors,
    complement: bool,
) -> tuple[Float[Tensor, "pos d_sae"], Float[Tensor, "pos one"]]:
    """1 where a latent, or an error, keeps its value, 0 where it is ablated."""
    keep, keep_error = torch.zeros(n_pos, site.sae.d_sae), torch.zeros(n_pos, 1)
    for node in nodes:
        if node.hook == site.hook:
            at = slice(None) if node.position is None else node.position
            if node.latent is None:
                keep_error[at] = 1
            else:
                keep[at, node.latent] = 1
    if complement:
        keep, keep_error = 1 - keep, 1 - keep_error
    if errors != "circuit":
        keep_error = torch.full_like(keep_error, float(errors == "all"))
    return keep, keep_error


def _ablation(
    site: FeatureSite,
    keep: Tensor,
    keep_error: Tensor,
    stand_in: tuple[Tensor, Tensor] | None,
    others: Mapping[str, Edit],
) -> dict[str, Edit]:
    """Edits that encode a site anew and put the stand-ins where nothing is kept."""
    seen: dict[str, Tensor] = {}
    before = others.get(site.reads)

    def read(x: Tensor) -> Tensor:
        # A transcoder may read where another site is ablated: it sees what was left there.
        seen["x"] = x if before is None else before(x)
        return seen["x"]

    def write(x: Tensor) -> Tensor:
        state = site.state(seen.get("x", x), x)
        latents, error = state.latents * keep.to(x), state.error * keep_error.to(x)
        if stand_in is not None:
            latents = latents + (1 - keep.to(x)) * stand_in[0]
            error = error + (1 - keep_error.to(x)) * stand_in[1]
        rows = site.decoder(torch.arange(site.sae.d_sae)).to(x)
        return latents @ rows + state.base + error

    if site.reads == site.hook:
        return {site.hook: write}
    return {site.reads: read, site.hook: write}
