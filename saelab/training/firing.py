"""Which latents fire? How long each has been silent, and what a batch says of fvu and L0."""

from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.activation_functions import ActivationFunction
from saelab.distributed import ALONE, Ranks
from saelab.objectives import Step
from saelab.sae import SAE

__all__ = ["Firing"]


@final
class Firing:
    """Tokens since each latent last fired.

    Args:
        sae: The dictionary, or this rank's shard of it.
        ranks: The processes of the run.
    """

    def __init__(self, sae: SAE, ranks: Ranks = ALONE) -> None:
        self._sae, self._ranks = sae, ranks
        self.since = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        """Tokens seen since each latent last fired."""

    def dead(self, after: int) -> Bool[Tensor, " d_sae"]:
        """The latents that fired on none of the last `after` tokens."""
        return self.since >= after

    def share(self, dead: Bool[Tensor, " d_sae"]) -> float:
        """Share of all latents, 0 to 1."""
        share = dead.float().mean()
        return (self._ranks.mean(share) if self._ranks.divides_latents else share).item()

    @torch.no_grad()
    def see(self, step: Step, batch_size: int) -> dict[str, float]:
        """Count a batch, and let the activation function observe it.

        Args:
            step: This rank's part of it.
            batch_size: Tokens in all of it.

        Returns:
            The batch's fvu and l0.
        """
        forward, targets, ranks = step.forward, step.targets, self._ranks
        active = forward.latents != 0
        self._observe(forward.latents[active].detach())
        fired = torch.bincount(forward.pairs.indices[active], minlength=len(self.since))
        per_token = active.sum() / len(targets)
        if ranks.divides_latents:
            ranks.sum_(per_token)
        center = targets.mean(0)
        if ranks.divides_tokens:
            ranks.sum_(fired)
            center = ranks.mean(center)
        self.since += batch_size
        self.since[fired > 0] = 0
        missed = (targets - forward.recons).square().sum()
        spread = (targets - center).square().sum()
        found = torch.stack([missed, spread, per_token.to(missed)])
        missed, spread, l0 = ranks.mean(found) if ranks.divides_tokens else found
        return {"fvu": (missed / spread).item(), "l0": l0.item()}

    def _observe(self, latents: Tensor) -> None:
        activation = self._sae.activation
        if type(activation).observe is not ActivationFunction.observe:
            activation.observe(torch.cat(self._ranks.gather(latents)))
