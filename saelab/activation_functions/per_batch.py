"""Activation functions that share a budget over a batch, and a threshold that replaces it.

In training the k * B strongest entries of a batch of B tokens are kept, so that a hard token may
use more latents than an easy one. At inference nothing may depend on the batch: a latent is active
when its strength exceeds the threshold, the running mean of the weakest strength that training
batches kept.

The exact selection never sees the whole [token, d_sae] matrix; `candidates` says how.
"""

import abc
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.activation_functions.base import ActivationFunction, require_latents, zeros_except
from saelab.activation_functions.candidates import BatchBorder
from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import Pairs, above
from saelab.kernels.encoding import Selected

__all__ = ["BatchAbsTopK", "BatchTopK"]

MEMORY = 0.9
"""Weight of the past in the running threshold. The border of one batch is the weakest of tens of
thousands of entries and hardly varies; a longer memory would keep borders of a dictionary that no
longer is."""


class _Budget(ActivationFunction, abc.ABC):
    """The shared budget; subclasses say whether sign counts."""

    threshold: Tensor
    batches: Tensor

    def __init__(self, k: int | float) -> None:
        super().__init__()
        if not k > 0:
            raise ConfigError(f"{type(self).__name__}(k={k}) keeps no latent; k must be positive.")
        self.k = float(k)
        # Double precision: a running mean of thousands of batches must not stop moving.
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._border = BatchBorder()
        self._bordered = True
        self._n_latents = 1

    @property
    def repeats(self) -> int:
        """How often a batch had to be encoded again because the guess was too high."""
        return self._border.repeats

    @property
    def target_l0(self) -> float:
        """k."""
        return self.k

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more latents than there are."""
        require_latents(self, self.k, d_sae)
        self._n_latents = d_sae

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = z where its strength exceeds the threshold, else 0."""
        return zeros_except(pre_acts, self.strength(pre_acts) > self._limit(pre_acts))

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The entries whose strength exceeds the threshold."""
        return above(pre_acts, self._limit(pre_acts), self.signed)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = z: selected entries are positive, or signed."""
        return pre_acts

    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Candidates: the entries above the guess."""
        share = self.k / self._n_latents
        return above(pre_acts, self._border.level(pre_acts, share, self.signed), self.signed)

    def settle(
        self, pairs: Pairs, pre_acts: Float[Tensor, " pair"]
    ) -> Bool[Tensor, " pair"] | None:
        """The floor(k * B) strongest candidates (at least one), exactly.

        Raises:
            SelectAgain: The guess was too high; it is lower now.
        """
        strength = self.strength(pre_acts)
        kept, border = self._border.settle(strength, budget_of(self.k, pairs.n_tokens))
        self._bordered = border is not None
        return kept

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, " pair"]) -> None:
        """Move the threshold toward the weakest strength of this batch.

        A batch with fewer positive entries than the budget keeps them all: its weakest is next to
        zero and no border, so it leaves the threshold alone.
        """
        if len(latents) == 0 or not self._bordered:
            return
        weakest = self.strength(latents).min().double()
        self.batches += 1
        # A plain mean at first, so that the start at zero leaves no bias.
        weight = max(1 - MEMORY, 1 / int(self.batches))
        self.threshold += weight * (weakest - self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Name and k; the threshold is a tensor."""
        return {"name": self.name, "k": self.k}

    def file_tensors(self) -> dict[str, Tensor]:
        """The threshold, once per latent as SAELens's jumprelu wants it."""
        return {"threshold": self.threshold.float().expand(self._n_latents).clone()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back the threshold."""
        if set(tensors) != {"threshold"} or len(tensors["threshold"].unique()) != 1:
            raise CheckpointError(
                f"{self} needs one threshold in the weights file; found "
                f"{', '.join(sorted(tensors)) or 'nothing'}."
            )
        self.threshold.fill_(tensors["threshold"][0].item())
        self.batches.fill_(1)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"k={self.k:g}"

    def _limit(self, pre_acts: Tensor) -> Tensor:
        # In the file's precision, so that a saved dictionary decides the same.
        return self.threshold.float().to(pre_acts.dtype)


@final
class BatchTopK(_Budget):
    """Keep the k * B largest positive pre-activations of a batch of B tokens.

    At inference f = z where z > threshold, which is a JumpReLU with one threshold.

    Args:
        k: Mean number of latents per token; may be fractional.

    Source: Bussmann, Leask and Nanda 2024, "BatchTopK sparse autoencoders". Mutual Choice
    (Ayonrinde 2024) is the same rule.
    """

    name = "batchtopk"

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's jumprelu with the same threshold everywhere."""
        return "jumprelu", {}


@final
class BatchAbsTopK(_Budget):
    """Keep the k * B pre-activations of largest size of a batch of B tokens, with their sign.

    At inference f = z where |z| > threshold.

    Args:
        k: Mean number of latents per token; may be fractional.

    Source: Zhu, Khalili and Zhu 2026, whose code selects over the batch.
    """

    name = "batchabstopk"
    signed = True


def budget_of(k: float, n_tokens: int) -> int:
    """floor(k * B), and at least 1.

    >>> budget_of(0.29, 100), budget_of(0.001, 40)
    (29, 1)
    """
    return max(1, int(k * n_tokens + 1e-9))  # 0.29 * 100 is 28.999999999999996
