"""What training minimizes: a sum of named terms.

A family of dictionaries is an activation function times a list of terms:

    family   activation function   terms
    TopK     TopK(k)               Reconstruction(), AuxK()

Every term is scaled so that its size does not depend on the data's units: reconstruction is the
squared error over the variance of the data, measured once before training.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.errors import ConfigError
from saelab.kernels import GradientBuffers, sparse_decode, top_k
from saelab.kernels.encoding import Selected, Selection
from saelab.sae import SAE, PairForward

__all__ = ["AuxK", "Reconstruction", "Step", "Term", "default_terms"]


@final
@dataclass(slots=True, eq=False)
class Step:
    """What a term may look at."""

    sae: SAE
    forward: PairForward
    targets: Float[Tensor, "token d_out"]
    """What should be reconstructed, in normalized units."""
    variance: float
    """E|target - mean|^2 of a sample, in normalized units."""
    buffers: GradientBuffers | None
    """Where weight gradients go, for a term that decodes once more."""


class Term(abc.ABC):
    """One named part of an objective."""

    name: str

    @abc.abstractmethod
    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value, already weighted, dimensionless."""

    def selection(
        self,
        sae: SAE,  # noqa: ARG002
        dead: Bool[Tensor, " d_sae"],  # noqa: ARG002
    ) -> Selection | None:
        """Pairs the term needs besides the family's own; found in `Step.forward.extra`."""
        return None

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Name and settings, recorded with the run."""


@final
@dataclass(frozen=True)
class Reconstruction(Term):
    """Squared error relative to the data's variance.

        mean over tokens of |target - recons|^2, over E|target - mean|^2

    On a large sample this is the fraction of variance unexplained.
    """

    name = "reconstruction"

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        error = step.targets - step.forward.recons
        return error.square().sum() / (len(error) * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Just the name."""
        return {"name": self.name}


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
            strength, place = top_k(sae.activation.strength(candidates), k)
            row, column = (strength > 0).nonzero(as_tuple=True)
            chosen = place[row, column]
            return row, indices[chosen], candidates[row, chosen]

        return select

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        if self.name not in step.forward.extra:
            return step.forward.recons.new_zeros(())
        pairs, pre_acts = step.forward.extra[self.name]
        latents = pre_acts if step.sae.activation.signed else pre_acts.relu()
        error = (step.targets - step.forward.recons).detach()
        recovered = sparse_decode(latents, step.sae.W_dec, None, pairs, step.buffers)
        baseline = (error - error.mean(0)).square().sum()
        if baseline == 0:
            return recovered.new_zeros(())
        return self.coefficient * (recovered - error).square().sum() / baseline

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient, "k": self.k}


def default_k_aux(d_in: int) -> int:
    """The power of two nearest to d_in / 2."""
    return 2 ** round(math.log2(max(d_in / 2, 1)))


def default_terms(sae: SAE) -> tuple[Term, ...]:
    """The terms of the family that the dictionary's activation function belongs to.

    Raises:
        ConfigError: The activation function alone does not say what to minimize.
    """
    if isinstance(sae.activation, TopK):
        return Reconstruction(), AuxK()
    raise ConfigError(
        f"{sae.activation} has no default objective: pass terms=..., for example "
        "(saelab.objectives.Reconstruction(), ...)."
    )
