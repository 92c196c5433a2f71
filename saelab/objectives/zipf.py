"""AuxZipf: the term that brings back latents that are dead, and those that are dying."""

from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions.base import picks
from saelab.errors import ConfigError
from saelab.kernels import top_k
from saelab.kernels.encoding import Selected, Selection
from saelab.objectives.auxk import default_k_aux, recovered_error
from saelab.objectives.base import Step, Term
from saelab.sae import SAE
from saelab.zipf_curve import fit_zipf

__all__ = ["AuxZipf"]

MEMORY = 0.99
"""Weight of the past in the running densities."""
WARMUP = 50
"""Steps before densities are trusted; until then only dead latents count as underused."""


@final
class AuxZipf(Term):
    """AuxK over underused latents, weighted by how much they are underused.

    With rho the running density of a latent and zeta what the Zipf curve fitted to the 80 % most
    frequent ranks expects at its rank, a latent is underused if rho < share * zeta, and has

        weight = min(1, (zeta - rho) / zeta)            1 if it is dead

    The term is AuxK's, with e_hat decoded from the k underused latents of each token that are
    strongest, each times its weight. It is AuxK where only dead latents are underused.

    Args:
        coefficient: Weight of the term.
        k: Underused latents per token; None for the power of two nearest to d_in / 2.
        share: Below this share of its expected density a latent is underused; 0 for AuxK.

    Source: Ayonrinde 2024 for extending AuxK from dead to underused latents. The weights, the fit
    and the share are ours: no code was published.
    """

    name = "aux_zipf"

    def __init__(
        self,
        *,
        coefficient: int | float = 1 / 32,
        k: int | None = None,
        share: int | float = 0.5,
    ) -> None:
        if coefficient <= 0 or (k is not None and k < 1) or not 0 <= share <= 1:
            raise ConfigError(
                f"AuxZipf(coefficient={coefficient}, k={k}, share={share}): coefficient and k must "
                "be positive, share from 0 to 1; leave the term out to train without it."
            )
        self.coefficient, self.k, self.share = float(coefficient), k, float(share)
        self._density: Tensor | None = None
        self._steps = torch.zeros((), dtype=torch.int64)
        self._weights: Tensor | None = None

    def underused(self, dead: Bool[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """Weight of every latent: 1 if dead, 0 if used enough."""
        weights = dead.double()
        density = self._density
        if density is None or self.share == 0 or int(self._steps) < WARMUP:
            return weights
        curve = fit_zipf(density)
        if curve is None:
            return weights
        ranked = density.sort(descending=True, stable=True).indices
        expected = torch.empty_like(density)
        expected[ranked] = curve.expected(len(density)).to(density)
        lack = ((expected - density) / expected).clamp(max=1)
        return torch.where(dead | (density >= self.share * expected), weights, lack)

    def selection(self, sae: SAE, dead: Bool[Tensor, " d_sae"]) -> Selection | None:
        """The k strongest underused latents of each token that would contribute."""
        weights = self.underused(dead)
        indices = weights.nonzero().squeeze(1)
        if len(indices) == 0:
            return None
        self._weights = weights.to(sae.dtype)
        factors = self._weights[indices]
        k = min(self.k or default_k_aux(sae.d_in), len(indices))

        def select(pre_acts: Tensor) -> Selected:
            candidates = pre_acts[:, indices]
            strongest = top_k(sae.activation.strength(candidates) * factors, k)
            row, place, values = picks(candidates, *strongest)
            return row, indices[place], values

        return select

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        if self.name not in step.forward.extra or self._weights is None:
            return step.forward.recons.new_zeros(())
        pairs, pre_acts = step.forward.extra[self.name]
        latents = pre_acts if step.sae.activation.signed else pre_acts.relu()
        return self.coefficient * recovered_error(
            step, pairs, latents * self._weights[pairs.indices]
        )

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Move the running densities."""
        forward = step.forward
        active = forward.pairs.indices[forward.latents != 0]
        counts = torch.bincount(active, minlength=step.sae.d_sae).double()
        if self._density is None:
            self._density = torch.zeros_like(counts)
        self._steps += 1
        weight = max(1 - MEMORY, 1 / int(self._steps))  # a plain mean at first
        density = step.mean(counts / forward.pairs.n_tokens)
        self._density += weight * (density - self._density)

    def state(self) -> dict[str, Tensor]:
        """Densities and the number of steps they are a mean of."""
        if self._density is None:
            return {"steps": self._steps}
        return {"steps": self._steps, "density": self._density}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._steps, self._density = state["steps"].clone(), state.get("density")

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "coefficient": self.coefficient,
            "k": self.k,
            "share": self.share,
        }
