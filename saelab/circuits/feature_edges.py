"""How much of a node's effect runs through which later node?

    edge(u -> d) = grad_d m . (direct slope of d by u) . (u_patch - u_clean)

The direct slope is that of d's value by u's with every other site held: each site's activation is
made an input of its own, so that what reaches d from u's input has passed through none of them.
Summed over all d and the metric itself, the edges of u give back its first-order effect.

A latent d moves with its pre-activation where it is active. The error of a site is what its
activation does and its latents and skip path do not; a skip path is passed like a residual one.

Source: Marks et al. 2025 (arXiv 2403.19647), appendix A.1 and A.3.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits.feature_effects import EffectsConfig, Metric, rowwise, site_slopes
from saelab.circuits.feature_sites import FeatureNode, FeatureSite, SiteState, check_pairs, states
from saelab.models import Edit, LanguageModel

__all__ = ["METRIC", "FeatureEdge", "feature_edges"]

METRIC = FeatureNode("metric", None, None)
"""Where edges that reach the metric directly end."""
AT_ONCE = 64
"""Downstream nodes in one backward pass."""


class FeatureEdge(NamedTuple):
    """From one node to a later one."""

    source: FeatureNode
    """Upstream."""
    target: FeatureNode
    """Downstream, or `METRIC`."""


def feature_edges(
    model: LanguageModel,
    sites: Sequence[FeatureSite],
    nodes: Sequence[FeatureNode],
    clean: Int[Tensor, "row pos"],
    metric: Metric,
    patch: Int[Tensor, "patch_row patch_pos"] | None = None,
    config: EffectsConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[FeatureEdge, float]:
    """Edges among some nodes, and from them to the metric; mean over rows.

    One forward pass a row, and one backward pass for every 64 nodes of a site.

    Args:
        model: The running model.
        sites: Of `feature_sites`.
        nodes: Between which edges are wanted.
        clean: Token ids the model is run on.
        metric: What is measured on the logits.
        patch: Token ids that values are taken from; zeros if None.
        config: How the metric's slope at a downstream node is estimated.
        progress: Called with (rows done, rows in all, what).
    """
    config = config or EffectsConfig(method="attribution")
    check_pairs(clean, patch)
    totals: dict[FeatureEdge, float] = {}
    for row in range(len(clean)):
        tokens, other = clean[row : row + 1], None if patch is None else patch[row : row + 1]
        before = states(model, sites, tokens)
        after = [s.ablated() for s in before] if other is None else states(model, sites, other)
        slopes, _ = site_slopes(model, sites, tokens, metric, before, after, config)
        found = _of_row(model, sites, nodes, tokens, metric, before, after, slopes)
        for edge, value in found.items():
            totals[edge] = totals.get(edge, 0.0) + value / len(clean)
        if progress is not None:
            progress(row + 1, len(clean), "edges")
    return totals


def _of_row(
    model: LanguageModel,
    sites: Sequence[FeatureSite],
    nodes: Sequence[FeatureNode],
    tokens: Int[Tensor, "one pos"],
    metric: Metric,
    before: Sequence[SiteState],
    after: Sequence[SiteState],
    slopes: Sequence[Tensor],
) -> dict[FeatureEdge, float]:
    with torch.enable_grad():
        seen, leaves, value = _cut_pass(model, sites, tokens, metric)
    found: dict[FeatureEdge, float] = {}
    moves = {
        site.hook: (site, b.latents - a.latents, b.error - a.error)
        for site, a, b in zip(sites, before, after, strict=True)
    }

    def note(targets: Sequence[FeatureNode], outputs: list[Tensor], seeds: list[Tensor]) -> None:
        inputs = list(leaves.values())
        if not any(output.requires_grad for output in outputs):
            return
        pairs = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
        gradients = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            [s for _, s in pairs],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        by_hook = {h: g[:, 0] for h, g in zip(leaves, gradients, strict=True) if g is not None}
        for source in nodes:
            if source.hook in by_hook:
                values = _onto(source, by_hook[source.hook], *moves[source.hook])
                for target, one in zip(targets, values.tolist(), strict=True):
                    if one:
                        found[FeatureEdge(source, target)] = one

    note([METRIC], [value], [torch.ones(1, 1).to(value)])
    for site, state, slope in zip(sites, before, slopes, strict=True):
        mine = [node for node in nodes if node.hook == site.hook]
        for first in range(0, len(mine), AT_ONCE):
            some = mine[first : first + AT_ONCE]
            pairs = [_seeds(site, node, state, slope) for node in some]
            read = torch.stack([one for one, _ in pairs])
            written = torch.stack([one for _, one in pairs])
            if site.reads == site.hook:
                note(some, [seen[site.hook]], [read + written])
            else:
                note(some, [seen[site.reads], seen[site.hook]], [read, written])
    return found


def _cut_pass(
    model: LanguageModel, sites: Sequence[FeatureSite], tokens: Tensor, metric: Metric
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What is at every site before it is cut, the inputs put there, and the metric."""
    seen: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}
    written = {site.hook: site for site in sites}

    def visit(hook: str) -> Edit:
        def at(x: Tensor) -> Tensor:
            seen[hook] = x
            if hook not in written:
                return x
            # A skip path is no node: what it carries passes the cut.
            passed = written[hook].skipped(seen[written[hook].reads])
            leaves[hook] = (x - passed).detach().requires_grad_()
            return leaves[hook] + passed

        return at

    hooks = {hook for site in sites for hook in (site.reads, site.hook)}
    with model.editing({hook: visit(hook) for hook in hooks}):
        value = rowwise(metric, model.whole_pass(tokens)[0])
    ordered = {site.hook: leaves[site.hook] for site in sites}
    return seen, ordered, value


def _seeds(
    site: FeatureSite, node: FeatureNode, state: SiteState, slope: Float[Tensor, "one pos d_out"]
) -> tuple[Float[Tensor, "one pos d_in"], Float[Tensor, "one pos d_out"]]:
    """Slope of (grad_d m) d by what the dictionary reads, and by what is written."""
    at = torch.ones_like(slope[..., :1])
    if node.position is not None:
        at = torch.zeros_like(at)
        at[:, node.position] = 1
    weighed = slope * at
    active = (state.latents != 0).to(slope)
    if node.latent is not None:
        index = torch.tensor([node.latent])
        strength = (weighed @ site.decoder(index).T.to(slope)) * active[..., index]
        return strength @ site.encoder(index).to(slope), torch.zeros_like(slope)
    every = torch.arange(site.sae.d_sae)
    strength = (weighed @ site.decoder(every).T.to(slope)) * active
    read = -strength @ site.encoder(every).to(slope)
    if site.W_skip is not None:
        read = read - weighed @ site.W_skip.to(slope).T
    return read, weighed


def _onto(
    source: FeatureNode,
    gradients: Float[Tensor, "target pos d_out"],
    site: FeatureSite,
    latents: Float[Tensor, "one pos d_sae"],
    error: Float[Tensor, "one pos d_out"],
) -> Float[Tensor, " target"]:
    """What a move of one upstream node does to every target."""
    if source.latent is None:
        move = error[0]
    else:
        direction = site.decoder(torch.tensor([source.latent]))[0].to(gradients)
        move = latents[0, :, source.latent, None] * direction
    if source.position is not None:
        move, gradients = move[source.position][None], gradients[:, source.position][:, None]
    return torch.einsum("npd,pd->n", gradients, move)
