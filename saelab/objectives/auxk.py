"""AuxK: the term that brings dead latents back."""

import math
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions.base import picks
from saelab.errors import ConfigError
from saelab.kernels import Pairs, sparse_decode, top_k
from saelab.kernels.encoding import Selected, Selection
from saelab.objectives.base import Step, Term
from saelab.sae import SAE

__all__ = ["AuxK", "default_k_aux"]


@final
@dataclass(frozen=True, kw_only=True)
class AuxK(Term):
    """Let dead latents learn to reconstruct what the live ones missed.

    With e the (detached) error and e_hat its reconstruction, without bias, from the k strongest
    dead latents of each token:

        coefficient * mean|e_hat - e|^2 / mean|e - mean(e)|^2

    The gradient reaches the encoder and the decoder of dead latents, and no live latent. It is 0
    when nothing is dead, and does not change when data and b_dec are shifted together.

    Source: Gao et al. 2024, appendix A.2, and the authors' code for the normalization.
    """

    coefficient: float = 1 / 32
    """Weight of the term."""
    k: int | None = None
    """Dead latents per token; None for the power of two nearest to d_in / 2."""

    name = "auxk"

    def __post_init__(self) -> None:
        if self.coefficient <= 0 or (self.k is not None and self.k < 1):
            raise ConfigError(
                f"AuxK(coefficient={self.coefficient}, k={self.k}): both must be positive; "
                "leave the term out to train without it."
            )

    def selection(self, sae: SAE, dead: Bool[Tensor, " d_sae"]) -> Selection | None:
        """The k strongest dead latents of each token that would contribute."""
        indices = dead.nonzero().squeeze(1)
        if len(indices) == 0:
            return None
        k = min(self.k or default_k_aux(sae.d_in), len(indices))

        def select(pre_acts: Tensor) -> Selected:
            candidates = pre_acts[:, indices]
            strongest = top_k(sae.activation.strength(candidates), k)
            row, place, values = picks(candidates, *strongest)
            return row, indices[place], values

        return select

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        if self.name not in step.forward.extra:
            return step.forward.recons.new_zeros(())
        pairs, pre_acts = step.forward.extra[self.name]
        latents = pre_acts if step.sae.activation.signed else pre_acts.relu()
        return self.coefficient * recovered_error(step, pairs, latents)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient, "k": self.k}


def default_k_aux(d_in: int) -> int:
    """The power of two nearest to d_in / 2."""
    return 2 ** round(math.log2(max(d_in / 2, 1)))


def recovered_error(step: Step, pairs: Pairs, latents: Float[Tensor, " pair"]) -> Float[Tensor, ""]:
    """mean|e_hat - e|^2 / mean|e - mean(e)|^2, e the detached error, e_hat what latents decode to.

    Args:
        step: The step, for its error.
        pairs: Which latents may help.
        latents: Their values; the gradient reaches them and the decoder.
    """
    error = (step.targets - step.forward.recons).detach()
    recovered = step.add(sparse_decode(latents, step.sae.W_dec, None, pairs, step.buffers))
    baseline = step.mean((error - step.mean(error.mean(0))).square().sum())
    if baseline == 0:
        return recovered.new_zeros(())
    return (recovered - error).square().sum() / baseline
