"""How few neurons does a model need? The share active at a threshold that costs p % perplexity.

A neuron i of an MLP with output weights w_i is dropped where its contribution is small,

    |a_i| |w_i| < t        (layer by layer, t such that every layer loses the same CETT)
    CETT = |sum of the dropped a_i w_i| / |MLP(x)|, mean over tokens

and the one CETT that all layers share is bisected until the perplexity has risen by exactly p %
(PPL-p% sparsity). Unlike "share of exact zeros", this compares ReLU with SiLU neurons, whose
activations are never exactly zero; at p = 0 only exact zeros are dropped. The activation ratio is
the mean share of neurons that are kept.

Source: Luo et al. 2024, Sparsing Law: Towards Large Language Models with Greater Activation
Sparsity. CETT is the authors' word for the error ratio.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.models import Edit, LanguageModel

__all__ = [
    "MlpLayer",
    "SparsityPoint",
    "SparsityProfile",
    "activation_ratio",
    "cett",
    "sparsity_profile",
    "threshold_at",
]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class MlpLayer:
    """The neurons of one layer."""

    hook: str
    """Hook point of their activations, such as "blocks.3.mlp.hook_post"."""
    W_out: Float[Tensor, "neuron d"]
    """What one unit of each writes."""


@final
@dataclass(frozen=True, kw_only=True)
class SparsityPoint:
    """Every layer thresholded at one CETT."""

    cett: float
    """The error ratio all layers share, 0 to 1."""
    ratio: float
    """Mean share of neurons active, 0 to 1."""
    ratios: dict[str, float]
    """Hook point -> share active in that layer."""
    thresholds: dict[str, float]
    """Hook point -> t."""
    ppl_ratio: float
    """Perplexity with the rest dropped, over the perplexity before."""


@final
@dataclass(frozen=True, kw_only=True)
class SparsityProfile:
    """PPL-p% sparsity, and what was tried on the way."""

    p: float
    """Rise of the perplexity that is allowed, in percent."""
    point: SparsityPoint
    """At that rise."""
    tried: list[SparsityPoint]
    """By CETT, ascending."""


def cett(
    acts: Float[Tensor, "token neuron"], W_out: Float[Tensor, "neuron d"], threshold: float
) -> float:
    """Mean |dropped| / |output| of a layer's MLP (without its bias) at a threshold, 0 or more."""
    dropped = acts.abs() * W_out.norm(dim=1) < threshold
    lost = (acts * dropped) @ W_out
    whole = acts @ W_out
    return float((lost.norm(dim=1) / whole.norm(dim=1).clamp_min(1e-12)).mean())


def activation_ratio(
    acts: Float[Tensor, "token neuron"], W_out: Float[Tensor, "neuron d"], threshold: float
) -> float:
    """Share of neurons that are kept and not zero, 0 to 1."""
    return float(_kept(acts, W_out.norm(dim=1), threshold).float().mean())


def threshold_at(
    acts: Float[Tensor, "token neuron"],
    W_out: Float[Tensor, "neuron d"],
    wanted: float,
    n_steps: int = 40,
) -> float:
    """The largest threshold whose CETT is no more than `wanted`, by bisection; 0 for 0."""
    if wanted <= 0:
        return 0.0
    low, high = 0.0, float((acts.abs() * W_out.norm(dim=1)).max()) * 1.001 + 1e-12
    if cett(acts, W_out, high) <= wanted:
        return high
    for _ in range(n_steps):
        middle = (low + high) / 2
        if cett(acts, W_out, middle) <= wanted:
            low = middle
        else:
            high = middle
    return low


def sparsity_profile(
    model: LanguageModel,
    layers: Sequence[MlpLayer],
    tokens: Int[Tensor, "row pos"],
    *,
    p: float = 1.0,
    tolerance: float = 1e-3,
    max_steps: int = 20,
    calibration_rows: int = 4,
    rows_per_batch: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> SparsityProfile:
    """Bisect the CETT at which the perplexity has risen by p %.

    Position 0 is left alone, and no prediction made from it counts.

    Args:
        model: Runs the text.
        layers: The MLPs that are thresholded, all at once.
        tokens: Token ids, BOS first.
        p: Percent; 0 drops exact zeros only.
        tolerance: How close the ratio of perplexities must come to 1 + p / 100.
        max_steps: Bisection steps, at most.
        calibration_rows: Rows whose activations turn a CETT into thresholds.
        rows_per_batch: Rows a pass.
        progress: Called with (step, max_steps).

    Raises:
        ConfigError: p is negative, or there is no layer.
    """
    if p < 0 or not layers:
        raise ConfigError(f"sparsity_profile(p={p}) of {len(layers)} layers: p >= 0, and a layer.")
    hooks = [layer.hook for layer in layers]
    found = model.activations(tokens[:calibration_rows], hooks)
    acts = {hook: found[hook][:, 1:].flatten(0, 1).float() for hook in hooks}
    before = _loss(model, tokens, {}, rows_per_batch)

    def at(wanted: float) -> SparsityPoint:
        thresholds = {one.hook: threshold_at(acts[one.hook], one.W_out, wanted) for one in layers}
        edits, kept = _edits(layers, thresholds)
        loss = _loss(model, tokens, edits, rows_per_batch)
        ratios = {hook: float(sum(some) / len(some)) for hook, some in kept.items()}
        return SparsityPoint(
            cett=wanted,
            ratio=sum(ratios.values()) / len(ratios),
            ratios=ratios,
            thresholds=thresholds,
            ppl_ratio=math.exp(loss - before),
        )

    goal, low, high = 1 + p / 100, at(0.0), 1.0
    tried = [low]
    for step in range(max_steps if p > 0 else 0):
        middle = at((low.cett + high) / 2)
        tried.append(middle)
        if progress is not None:
            progress(step + 1, max_steps)
        if middle.ppl_ratio <= goal:
            low = middle
        else:
            high = middle.cett
        if abs(middle.ppl_ratio - goal) <= tolerance:
            low = middle
            break
    return SparsityProfile(p=p, point=low, tried=sorted(tried, key=lambda one: one.cett))


def _kept(acts: Tensor, norms: Tensor, threshold: float) -> Bool[Tensor, "*batch neuron"]:
    return (acts.abs() * norms >= threshold) & (acts != 0)


def _edits(
    layers: Sequence[MlpLayer], thresholds: Mapping[str, float]
) -> tuple[dict[str, Edit], dict[str, list[float]]]:
    """An edit for each layer, and where it notes the share it keeps of each pass."""
    kept: dict[str, list[float]] = {layer.hook: [] for layer in layers}

    def edit_of(layer: MlpLayer) -> Edit:
        norms = layer.W_out.norm(dim=1)

        def edit(x: Tensor) -> Tensor:
            stays = _kept(x, norms.to(x.device), thresholds[layer.hook])
            kept[layer.hook].append(float(stays[:, 1:].float().mean()))
            stays[:, 0] = True
            return x * stays

        return edit

    return {layer.hook: edit_of(layer) for layer in layers}, kept


@torch.no_grad()
def _loss(
    model: LanguageModel, tokens: Tensor, edits: Mapping[str, Edit], rows_per_batch: int
) -> float:
    """Mean cross-entropy in nats of the predictions made after position 0."""
    total, count = 0.0, 0
    with model.editing(edits):
        for part in tokens.split(rows_per_batch):
            logits = model.logits(part)[:, 1:-1].float()
            targets = part[:, 2:].to(logits.device).long()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum"
            )
            total, count = total + float(losses), count + targets.numel()
    return total / count
