"""What becomes of latents that never fire? Resampling points them at what is reconstructed worst.

For each dead latent a token of the batch is drawn, with chance proportional to its squared loss:

    W_dec[i]    = the token's direction from b_dec, at the mean length of the live directions
    W_enc[:, i] = that direction, at `encoder_share` of the mean length of the live encoders
    b_enc[i]    = 0

and Adam forgets its moments of both.

Source: Bricken et al. 2023, "Towards monosemanticity", appendix.
"""

from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.objectives import Step
from saelab.sae import SAE
from saelab.training.optimizers import Adam
from saelab.training.upkeep import Upkeep

__all__ = ["Resampling"]


@final
class Resampling(Upkeep):
    """Give dead latents new directions, some times in a run.

    Args:
        every_tokens: Tokens between two occasions; more than it takes for a latent to count as
            dead, or the same latents are given new directions before they had a chance.
        times: How many occasions there are.
        encoder_share: Length of a new encoder, as a share of the mean of the live ones; short, so
            that the new latents do not disturb what the others learned.
        seed: Of which tokens are drawn.

    Raises:
        ConfigError: A setting makes no sense.
    """

    name = "resampling"

    def __init__(
        self, every_tokens: int, times: int = 4, encoder_share: float = 0.2, seed: int = 0
    ) -> None:
        if every_tokens < 1 or times < 1 or not encoder_share > 0:
            raise ConfigError(
                f"Resampling(every_tokens={every_tokens}, times={times}, "
                f"encoder_share={encoder_share}): all must be positive."
            )
        self.every_tokens, self.times = every_tokens, times
        self.encoder_share, self.seed = encoder_share, seed

    @torch.no_grad()
    def after_step(
        self, step: Step, optimizer: Adam, dead: Bool[Tensor, " d_sae"], tokens_done: int
    ) -> str | None:
        """Resample if an occasion fell into this step.

        Raises:
            ConfigError: The dictionary is a transcoder, whose inputs and outputs are of two kinds.
        """
        sae = step.sae
        if sae.is_transcoder:
            raise ConfigError(
                "Resampling gives encoder and decoder one direction, so it needs an autoencoder; "
                "this dictionary is a transcoder. Leave it out."
            )
        occasion = tokens_done // self.every_tokens
        before = (tokens_done - len(step.targets)) // self.every_tokens
        if occasion == before or occasion > self.times or not dead.any() or dead.all():
            return None
        replaced = dead.nonzero().squeeze(1)
        tokens = self._draw(step, len(replaced), tokens_done)
        replaced = replaced[: len(tokens)]
        self._replace(sae, step.targets[tokens] - sae.b_dec, replaced, ~dead)
        known = optimizer.state()
        for name in ("W_enc", "b_enc", "W_dec"):
            if f"first.{name}" in known:  # not if it is tied or frozen
                optimizer.reset(name, replaced)
        return f"{len(replaced):,} dead latents were given new directions."

    def _draw(self, step: Step, n: int, tokens_done: int) -> Int[Tensor, " drawn"]:
        """Tokens with chance proportional to their squared loss, none twice."""
        loss = (step.targets - step.forward.recons).square().sum(1).double().cpu()
        chance = loss.square()
        n = min(n, int((chance > 0).sum()))
        if n == 0:
            return torch.empty(0, dtype=torch.int64, device=step.targets.device)
        generator = torch.Generator().manual_seed(self.seed + tokens_done)
        drawn = torch.multinomial(chance / chance.sum(), n, generator=generator)
        return drawn.to(step.targets.device)

    def _replace(self, sae: SAE, toward: Tensor, replaced: Tensor, live: Tensor) -> None:
        directions = toward / toward.norm(dim=1, keepdim=True).clamp_min(1e-12)
        lengths = (sae.W_dec[live].norm(dim=1).mean(), sae.W_enc.T[live].norm(dim=1).mean())
        # Assignment through one index: a chained one would write to a copy.
        sae.W_dec[replaced] = directions * lengths[0]
        sae.W_enc[:, replaced] = directions.T * (self.encoder_share * lengths[1])
        if sae.tied:
            sae.W_enc[:, replaced] = sae.W_dec[replaced].T
        sae.b_enc[replaced] = 0

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "every_tokens": self.every_tokens,
            "times": self.times,
            "encoder_share": self.encoder_share,
            "seed": self.seed,
        }
