"""Terms that compare a reconstruction with its target: whole, from more latents, from prefixes."""

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.errors import ConfigError
from saelab.kernels import sparse_decode
from saelab.kernels.encoding import Selection
from saelab.objectives.base import Step, Term, relative_error
from saelab.sae import SAE

__all__ = ["Matryoshka", "MultiTopK", "Reconstruction"]


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
        return relative_error(step, step.forward.recons)

    def to_json(self) -> dict[str, Any]:
        """Just the name."""
        return {"name": self.name}


@final
@dataclass(frozen=True, kw_only=True)
class MultiTopK(Term):
    """Also reconstruct from the factor * k strongest latents, so that k can grow after training.

        weight * reconstruction term with TopK(factor * k)

    Source: Gao et al. 2024, section 5; weights as in EleutherAI's sparsify.
    """

    factor: int = 4
    """How many times more latents."""
    weight: float = 1 / 8
    """Weight of the term."""

    name = "multitopk"

    def selection(self, sae: SAE, dead: Bool[Tensor, " d_sae"]) -> Selection | None:  # noqa: ARG002
        """The factor * k strongest latents of each token."""
        if not isinstance(sae.activation, TopK):
            raise ConfigError(f"MultiTopK needs a TopK dictionary; this one has {sae.activation}.")
        return TopK(min(self.factor * sae.activation.k, sae.d_sae)).select

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        pairs, pre_acts = step.forward.extra[self.name]
        sae = step.sae
        recons = sparse_decode(pre_acts.relu(), sae.W_dec, sae.b_dec, pairs, step.buffers)
        return self.weight * relative_error(step, recons)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "factor": self.factor, "weight": self.weight}


@final
@dataclass(frozen=True, kw_only=True)
class Matryoshka(Term):
    """Reconstruct from nested prefixes of the latents, so that the first ones carry the most.

        sum over prefixes m of |target - (f_{:m} W_dec[:m] + b_dec)|^2, relative to the variance

    Every prefix uses the same latents f: nothing is selected again within it. Replaces
    `Reconstruction`, which is the case of a single prefix.

    Source: Bussmann, Nabeshima, Karvonen and Nanda 2025.
    """

    shares: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Share of the latents in each group; they sum to 1."""

    name = "matryoshka"

    def __post_init__(self) -> None:
        if abs(sum(self.shares) - 1) > 1e-9 or min(self.shares) <= 0:
            raise ConfigError(f"Matryoshka(shares={self.shares}): they must be positive, sum 1.")

    def ends(self, d_sae: int) -> list[int]:
        """Where each prefix ends; the last is d_sae whatever the rounding."""
        total, ends = 0.0, []
        for share in self.shares:
            total += share
            ends.append(round(total * d_sae))
        if ends[0] < 1 or len(set(ends)) < len(ends):
            raise ConfigError(
                f"Matryoshka(shares={self.shares}) leaves a group without a latent at "
                f"d_sae={d_sae}. Use fewer groups, or more latents."
            )
        return ends

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        sae, forward = step.sae, step.forward
        pairs, ends = forward.pairs, self.ends(step.sae.d_sae)
        total = relative_error(step, forward.recons)
        recons, start = None, 0
        for end in ends[:-1]:
            inside = (pairs.indices >= start) & (pairs.indices < end)
            bias = sae.b_dec if recons is None else None
            part = sparse_decode(
                forward.latents[inside], sae.W_dec, bias, pairs.filtered(inside), step.buffers
            )
            recons = part if recons is None else recons + part
            total = total + relative_error(step, recons)
            start = end
        return total

    def to_json(self) -> dict[str, Any]:
        """Name and shares."""
        return {"name": self.name, "shares": list(self.shares)}
