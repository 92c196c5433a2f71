"""Mutual Choice and Feature Choice: who picks whom, tokens and latents together or latents alone.

Of a batch of B tokens, k * B entries of the [token, latent] matrix may be active. In training

    mutual    the largest k * B of the whole matrix, as in BatchTopK
    feature   of every latent its m_i largest, where the budgets m_i sum to k * B

so that under Feature Choice no latent can die. The two follow each other in phases. Only positive
entries are ever kept. At inference nothing may depend on the batch: latent i is active when its
pre-activation exceeds threshold_i, the running mean of the weakest entry that batches kept (of
the whole matrix in a mutual phase, of latent i in a feature phase).
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.activation_functions.base import ActivationFunction, require_latents, zeros_except
from saelab.activation_functions.candidates import BatchBorder, LatentBorders, divided
from saelab.activation_functions.per_batch import budget_of
from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import Pairs, above, entries
from saelab.kernels.encoding import Selected
from saelab.zipf_curve import fit_zipf

__all__ = ["Choice"]

ALLOCATORS = ("mutual", "feature")
BUDGETS = ("uniform", "zipf")


BORDER_MEMORY = 0.95
"""Weight of the past in a latent's threshold, whose border is the weakest of a few entries."""
DENSITY_MEMORY = 0.99
"""Weight of the past in the density that Zipf's law is fitted to."""


@final
class Choice(ActivationFunction):
    """Share k * B active entries out over a batch, by phases.

    Args:
        k: Mean number of latents per token; may be fractional.
        phases: Share of the training budget and allocator ("mutual" or "feature") of each phase;
            the shares sum to 1.
        budgets: Under Feature Choice, "uniform" gives every latent the same; "zipf" follows the
            Zipf curve fitted to how often latents fired in the mutual phase before, by rank.

    Source: Ayonrinde 2024, "Adaptive sparse allocation with Mutual Choice and Feature Choice
    sparse autoencoders". The order and length of the phases, and the fit of the curve, are ours:
    no code was published.
    """

    name = "choice"
    threshold: Tensor
    batches: Tensor
    phase: Tensor
    density: Tensor
    observed: Tensor
    weights: Tensor

    def __init__(
        self,
        k: int | float,
        phases: Sequence[Sequence[Any]] = ((0.9, "mutual"), (0.1, "feature")),
        budgets: str = "uniform",
    ) -> None:
        super().__init__()
        self.k = float(k)
        self.phases = tuple((float(share), str(allocator)) for share, allocator in phases)
        self.budgets = budgets
        self._check()
        self._border, self._borders = BatchBorder(), LatentBorders()
        self._seen: tuple[Tensor, Tensor, int] | None = None
        self._known_budgets: tuple[tuple[int, int, int], Tensor] | None = None
        for name, kind in (("phase", torch.int64), ("observed", torch.int64)):
            self.register_buffer(name, torch.zeros((), dtype=kind))
        self._make_buffers(0)

    @property
    def target_l0(self) -> float:
        """k."""
        return self.k

    @property
    def allocator(self) -> str:
        """Who picks in the current phase."""
        return self.phases[int(self.phase)][1]

    @property
    def repeats(self) -> int:
        """How often a batch had to be encoded again because a guess was too high."""
        return self._border.repeats + self._borders.repeats

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more latents than there are; make one threshold a latent."""
        require_latents(self, self.k, d_sae)
        self._make_buffers(d_sae)

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = z where z exceeds its latent's threshold, else 0."""
        return zeros_except(pre_acts, self._active(pre_acts))

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The entries above their latent's threshold."""
        return entries(pre_acts, self._active(pre_acts))

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = z: selected entries are positive."""
        return pre_acts

    def begin_step(self, progress: float, extra: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """Enter the phase that this share of the budget belongs to."""
        ends = torch.tensor([share for share, _ in self.phases], dtype=torch.float64).cumsum(0)
        phase = min(int((ends <= progress + 1e-12).sum()), len(self.phases) - 1)
        if phase == int(self.phase):
            return
        self.phase.fill_(phase)
        self.batches.zero_()  # the first border of the new phase replaces the mean of the old
        if self.allocator == "feature" and self.budgets == "zipf":
            self._fit_weights()

    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Candidates: the entries above the guess, or above their latent's guess."""
        if self.allocator == "mutual":
            share = self.k / len(self.threshold)
            return above(pre_acts, self._border.level(pre_acts, share, signed=False))
        shares = (self.k * self.weights / self.weights.sum()).clamp(max=1)
        return entries(pre_acts, self._borders.candidates(pre_acts, shares))

    def settle(self, pairs: Pairs, pre_acts: Float[Tensor, " pair"]) -> Bool[Tensor, " pair"]:
        """The entries the allocator keeps, exactly.

        Raises:
            SelectAgain: A guess was too high; it is lower now.
            ConfigError: A feature phase is planned, and the batch is smaller than d_sae / k.
        """
        self._refuse_small(pairs.n_tokens)
        total = budget_of(self.k, pairs.n_tokens)
        if self.allocator == "mutual":
            kept, border = self._border.settle(pre_acts, total)
            kept = torch.ones_like(pre_acts, dtype=torch.bool) if kept is None else kept
            borders = torch.full_like(self.threshold, torch.nan if border is None else border)
        else:
            kept, borders = self._borders.settle(
                pairs, pre_acts, self._divided(total, pairs.n_tokens)
            )
        fired = torch.bincount(pairs.indices[kept], minlength=pairs.n_latents)
        self._seen = fired, borders, pairs.n_tokens
        return kept

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, " pair"]) -> None:  # noqa: ARG002
        """Move each threshold toward the weakest entry this batch kept, where that is a border."""
        if self._seen is None:
            return
        fired, borders, n_tokens = self._seen
        self._seen = None
        known = ~borders.isnan()
        self.batches += known
        # A plain mean at first, so that the start leaves no bias.
        weight = (1 / self.batches.double()).clamp(min=1 - BORDER_MEMORY)
        moved = self.threshold + weight * (borders.double() - self.threshold)
        self.threshold.copy_(torch.where(known, moved, self.threshold))
        if self.allocator == "mutual":
            self.observed += 1
            weight = max(1 - DENSITY_MEMORY, 1 / int(self.observed))
            self.density += weight * (fired.double() / n_tokens - self.density)

    def to_json(self) -> dict[str, Any]:
        """Name and settings; thresholds are a tensor."""
        phases = [list(phase) for phase in self.phases]
        return {"name": self.name, "k": self.k, "phases": phases, "budgets": self.budgets}

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's jumprelu with the same thresholds."""
        return "jumprelu", {}

    def file_tensors(self) -> dict[str, Tensor]:
        """The thresholds."""
        return {"threshold": self.threshold.float()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back the thresholds."""
        if set(tensors) != {"threshold"} or tensors["threshold"].shape != self.threshold.shape:
            raise CheckpointError(
                f"{self} needs {len(self.threshold)} thresholds in the weights file; found "
                f"{ {name: tuple(t.shape) for name, t in tensors.items()} }."
            )
        self.threshold.copy_(tensors["threshold"])
        self.batches.fill_(1)
        self.phase.fill_(len(self.phases) - 1)

    def extra_repr(self) -> str:
        """Shown by print."""
        named = ", ".join(f"{share:.0%} {allocator}" for share, allocator in self.phases)
        return f"k={self.k:g}, {named}" + (", zipf" if self.budgets == "zipf" else "")

    def _active(self, pre_acts: Tensor) -> Tensor:
        # Compared in the file's precision, so that a saved dictionary decides the same.
        return pre_acts > self.threshold.float().to(pre_acts.dtype).clamp(min=0)

    def _make_buffers(self, d_sae: int) -> None:
        # Double precision: a running mean of thousands of batches must not stop moving.
        for name, start in (("threshold", 0.0), ("density", 0.0), ("weights", 1.0)):
            self.register_buffer(name, torch.full((d_sae,), start, dtype=torch.float64))
        self.register_buffer("batches", torch.zeros(d_sae, dtype=torch.int64))

    def _divided(self, total: int, n_tokens: int) -> Int[Tensor, " d_sae"]:
        """Budget of each latent; worked out once a phase, unless batches differ in size."""
        asked = int(self.phase), total, n_tokens
        if self._known_budgets is None or self._known_budgets[0] != asked:
            self._known_budgets = asked, divided(self.weights, total, n_tokens)
        return self._known_budgets[1].to(self.weights.device)

    def _fit_weights(self) -> None:
        """Budgets for a feature phase: what the curve expects at each latent's rank."""
        curve = fit_zipf(self.density)
        if curve is None:
            return
        ranked = self.density.sort(descending=True, stable=True).indices
        self.weights[ranked] = curve.expected(len(ranked)).to(self.weights)

    def _check(self) -> None:
        asked = f"Choice(k={self.k:g}, phases={self.phases}, budgets={self.budgets!r})"
        allocators = [allocator for _, allocator in self.phases]
        if not self.k > 0:
            raise ConfigError(f"{asked} keeps no latent; k must be positive.")
        if unknown := sorted({*allocators} - {*ALLOCATORS}):
            raise ConfigError(f"{asked} knows no {unknown[0]!r}; allocators: mutual, feature.")
        shares = [share for share, _ in self.phases]
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ConfigError(f"{asked}: the shares of the phases must be positive and sum to 1.")
        if self.budgets not in BUDGETS:
            raise ConfigError(f"{asked}: budgets are 'uniform' or 'zipf'.")
        before = (
            allocators[: allocators.index("feature")] if "feature" in allocators else ["mutual"]
        )
        if self.budgets == "zipf" and "mutual" not in before:
            raise ConfigError(
                f"{asked}: zipf budgets follow the ranks that a mutual phase shows; put one first."
            )

    def _refuse_small(self, n_tokens: int) -> None:
        d_sae = len(self.threshold)
        planned = any(allocator == "feature" for _, allocator in self.phases)
        if planned and n_tokens * self.k < d_sae:
            raise ConfigError(
                f"Feature Choice with k={self.k:g} has {int(n_tokens * self.k):,} active entries "
                f"for a batch of {n_tokens:,} tokens, fewer than the {d_sae:,} latents that must "
                f"each get one. Use batches of at least {-int(-d_sae // self.k):,} tokens; 4 times "
                "that is better."
            )
