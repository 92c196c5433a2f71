"""How much does each latent, and each error, matter for a metric of the model's logits?

Replacing a node's value a by a_patch changes the metric m by its effect. First order, and averaged
along the straight line from patch to clean, of all nodes of one site together:

    attribution   grad_a m at clean . (a_patch - a_clean)
    integrated    mean over alpha of grad_a m at (alpha a_clean + (1 - alpha) a_patch)
                  . (a_patch - a_clean)

Without patch tokens, a_patch is 0 for latents and errors. Since all nodes of a site move together,
the line is that of the activation x itself, and grad_{f_i} m = W_dec[i] . grad_x m.

The published methods average with the left or the right rule; on a quadratic metric both are off
by the first order in 1 / n_steps, and the midpoint rule is exact.

Source: Marks et al. 2025 (arXiv 2403.19647), equations 2 to 4 and appendix A.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits.feature_sites import FeatureNode, FeatureSite, SiteState, check_pairs, states
from saelab.errors import ConfigError, ShapeError
from saelab.models import Edit, LanguageModel

__all__ = [
    "Aggregation",
    "EffectsConfig",
    "FeatureEffects",
    "Metric",
    "effects_at",
    "feature_effects",
    "rowwise",
    "site_slopes",
]

Metric = Callable[[Tensor], Tensor]
"""Logits [row, pos, d_vocab] in, one number a row out; differentiable."""
Aggregation = Literal["none", "sum"]
"""Positions are nodes of their own, or summed; the mean over rows is taken in both cases."""


@final
@dataclass(frozen=True, kw_only=True)
class EffectsConfig:
    """How effects are estimated."""

    method: Literal["attribution", "integrated"] = "integrated"
    """First order at the clean run; or its mean along the line from patch to clean."""
    steps: int = 10
    """Points on the line; one forward and one backward pass each, for every site."""
    rule: Literal["left", "right", "midpoint"] = "midpoint"
    """Where the points are: left includes patch, right includes clean."""
    rows_per_batch: int = 4
    """Rows in one pass; their latents are held densely."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows_per_batch < 1:
            raise ConfigError(
                f"EffectsConfig(steps={self.steps}, rows_per_batch={self.rows_per_batch}): both "
                "must be at least 1."
            )

    def alphas(self) -> list[float]:
        """Shares of clean, 0 to 1.

        >>> EffectsConfig(steps=2).alphas(), EffectsConfig(steps=2, rule="left").alphas()
        ([0.25, 0.75], [0.0, 0.5])
        """
        shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[self.rule]
        return [(n + shift) / self.steps for n in range(self.steps)]


@final
@dataclass(frozen=True, slots=True, eq=False)
class FeatureEffects:
    """Mean effect of every node on the metric: m(patched) - m(clean), estimated."""

    sites: tuple[FeatureSite, ...]
    """In the model's order."""
    latents: tuple[Float[Tensor, "pos_or_one _"], ...]
    """By site: [pos, d_sae], or [1, d_sae] where positions are summed; mean over rows."""
    errors: tuple[Float[Tensor, " pos_or_one"], ...]
    """By site, likewise."""
    aggregation: Aggregation
    """Whether positions are nodes of their own."""
    metric: float
    """Mean over rows of the metric at clean."""

    def nodes(self, threshold: float) -> dict[FeatureNode, float]:
        """Nodes whose effect is larger than a threshold in size, the largest first."""
        found: dict[FeatureNode, float] = {}
        for site, latents, errors in zip(self.sites, self.latents, self.errors, strict=True):
            whole = torch.cat([latents, errors[:, None]], dim=1)
            for at, index in (whole.abs() > threshold).nonzero().tolist():
                position = at if self.aggregation == "none" else None
                latent = index if index < latents.shape[1] else None
                found[FeatureNode(site.hook, position, latent)] = float(whole[at, index])
        return dict(sorted(found.items(), key=lambda one: -abs(one[1])))


def feature_effects(
    model: LanguageModel,
    sites: Sequence[FeatureSite],
    clean: Int[Tensor, "row pos"],
    metric: Metric,
    patch: Int[Tensor, "patch_row patch_pos"] | None = None,
    config: EffectsConfig | None = None,
    *,
    aggregation: Aggregation = "sum",
    progress: Callable[[int, int, str], None] | None = None,
) -> FeatureEffects:
    """Estimate the effect of every latent and error of every site.

    Args:
        model: The running model.
        sites: Of `feature_sites`.
        clean: Token ids the model is run on.
        metric: What is measured on the logits.
        patch: Token ids that values are taken from, row by row; zeros in place of values if None.
        config: How.
        aggregation: "none" for prompts of one template; "sum" where positions do not line up.
        progress: Called with (rows done, rows in all, what).

    Raises:
        ShapeError: The tokens do not pair up, or the metric does not give one number a row.
    """
    config = config or EffectsConfig()
    check_pairs(clean, patch)
    latents: list[Tensor] = []
    errors: list[Tensor] = []
    total = 0.0
    for start in range(0, len(clean), config.rows_per_batch):
        rows = slice(start, start + config.rows_per_batch)
        some, other = clean[rows], None if patch is None else patch[rows]
        before = states(model, sites, some)
        after = [s.ablated() for s in before] if other is None else states(model, sites, other)
        slopes, value = site_slopes(model, sites, some, metric, before, after, config)
        total += value
        parts = [
            effects_at(site, slope, a, b)
            for site, slope, a, b in zip(sites, slopes, before, after, strict=True)
        ]
        summed = [
            (one.sum(0), error.sum(0))
            if aggregation == "none"
            else (one.sum((0, 1))[None], error.sum()[None])
            for one, error in parts
        ]
        latents = _added(latents, [one for one, _ in summed])
        errors = _added(errors, [error for _, error in summed])
        if progress is not None:
            progress(min(rows.stop, len(clean)), len(clean), "effects")
    n = len(clean)
    return FeatureEffects(
        tuple(sites),
        tuple(one / n for one in latents),
        tuple(one / n for one in errors),
        aggregation,
        total / n,
    )


def effects_at(
    site: FeatureSite, slope: Float[Tensor, "row pos d_out"], before: SiteState, after: SiteState
) -> tuple[Float[Tensor, "row pos d_sae"], Float[Tensor, "row pos"]]:
    """Effects of a site's latents and errors, given the metric's slope there."""
    moved = after.latents - before.latents
    row, at, latent = moved.nonzero(as_tuple=True)
    directions = site.decoder(latent).to(slope)
    effects = torch.zeros_like(moved)
    effects[row, at, latent] = moved[row, at, latent] * (slope[row, at] * directions).sum(-1)
    return effects, (slope * (after.error - before.error)).sum(-1)


def site_slopes(
    model: LanguageModel,
    sites: Sequence[FeatureSite],
    tokens: Int[Tensor, "row pos"],
    metric: Metric,
    before: Sequence[SiteState],
    after: Sequence[SiteState],
    config: EffectsConfig,
) -> tuple[list[Float[Tensor, "row pos _"]], float]:
    """By site the metric's slope, and the metric at clean, summed over rows."""
    moved: dict[str, Tensor] = {}

    def mover(hook: str) -> Edit:
        def move(x: Tensor) -> Tensor:
            moved[hook] = torch.zeros_like(x, requires_grad=True)
            return x + moved[hook]

        return move

    hooks = [site.hook for site in sites]
    with torch.enable_grad(), model.editing({hook: mover(hook) for hook in hooks}):
        value = rowwise(metric, model.whole_pass(tokens)[0])
        first = torch.autograd.grad(value.sum(), [moved[h] for h in hooks], allow_unused=True)
    slopes = zip(hooks, first, strict=True)
    clean = [torch.zeros_like(moved[hook]) if g is None else g for hook, g in slopes]
    if config.method == "attribution":
        return clean, float(value.detach().sum())
    found = []
    for site, a, b in zip(sites, before, after, strict=True):
        ends = [one.latents @ _all_rows(site, one) + one.error for one in (a, b)]
        total = torch.zeros_like(ends[0])
        for alpha in config.alphas():
            # The base, b_dec and a skip path, is no node: it stays that of the clean run.
            point = alpha * ends[0] + (1 - alpha) * ends[1] + a.base
            total += _slope_at(model, site.hook, tokens, metric, point)
        found.append(total / config.steps)
    return found, float(value.detach().sum())


def rowwise(metric: Metric, logits: Float[Tensor, "row pos d_vocab"]) -> Float[Tensor, " row"]:
    """The metric, checked.

    Raises:
        ShapeError: It does not give one number a row.
    """
    value = metric(logits)
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"The metric was given the logits of {len(logits)} rows and returned {found}; return "
            "one number a row."
        )
    return value


def _slope_at(
    model: LanguageModel, hook: str, tokens: Tensor, metric: Metric, point: Tensor
) -> Float[Tensor, "row pos d_out"]:
    leaf = point.detach().requires_grad_()
    with torch.enable_grad(), model.editing({hook: lambda _: leaf}):
        value = rowwise(metric, model.whole_pass(tokens)[0])
        (slope,) = torch.autograd.grad(value.sum(), [leaf], allow_unused=True)
    return torch.zeros_like(leaf) if slope is None else slope


def _all_rows(site: FeatureSite, state: SiteState) -> Float[Tensor, "d_sae d_out"]:
    return site.decoder(torch.arange(site.sae.d_sae)).to(state.latents)


def _added(totals: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return more if not totals else [a + b for a, b in zip(totals, more, strict=True)]
