"""From a gradient to new weights: project, clip, Adam, renormalize.

    1. remove from each decoder direction's gradient its component along the direction
    2. clip the global gradient norm
    3. Adam
    4. scale every decoder direction back to norm 1

Adam divides elementwise, so the update of 3 is not tangent even after 1; 4 is what keeps the
directions at norm 1. Families whose objective prices a long direction leave 1 and 4 out; tied
weights add the encoder's gradient to the decoder's before 1.
"""

from typing import final

import torch
from torch import Tensor

from saelab.errors import ConfigError
from saelab.sae import SAE
from saelab.training.config import TrainConfig
from saelab.training.gradients import Gradients
from saelab.training.latent_shards import Shard
from saelab.training.optimizers import Adam, rate_at

__all__ = ["Updates"]


@final
class Updates:
    """The optimizer of a dictionary and what is done around its step.

    Args:
        sae: Changed in place.
        config: Clip, betas, what is frozen, whether directions are kept at norm 1.
        shard: How the latents are divided among processes, where they are.

    Raises:
        ConfigError: A frozen parameter does not exist.
    """

    def __init__(self, sae: SAE, config: TrainConfig, shard: Shard | None = None) -> None:
        self.sae, self._config, self._shard = sae, config, shard
        self._d_sae = sae.d_sae * (1 if shard is None else shard.ranks.world)
        self.trained = _trained(sae, config)
        """The parameters the optimizer moves."""
        self.optimizer = Adam(self.trained, config.betas, moments=config.moments)

    @torch.no_grad()
    def step(self, gradients: Gradients, tokens_done: int) -> dict[str, float]:
        """Move the weights.

        Returns:
            The gradient norm before clipping, and the learning rate.
        """
        W_dec, W_enc = self.sae.W_dec, self.sae.W_enc
        gradient = gradients.of("W_dec")
        if self.sae.tied:
            gradient.add_(gradients.of("W_enc").T)
        if self._config.decoder == "unit":
            along = torch.bmm(gradient.unsqueeze(1), W_dec.unsqueeze(2)).squeeze(1)
            gradient.addcmul_(along, W_dec, value=-1)
        moving = {name: gradients.of(name) for name in self.trained}
        norm = self._norm(moving)
        lr, clip = self._lr(tokens_done), self._config.clip
        self.optimizer.step(moving, lr, norm / clip if clip is not None and norm > clip else 1.0)
        if self._config.decoder == "unit":
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
        if self.sae.tied:
            W_enc.copy_(W_dec.T)
        self.sae.activation.constrain()
        return {"grad_norm": norm, "lr": lr}

    def _lr(self, tokens_done: int) -> float:
        return rate_at(self._config, tokens_done, self._d_sae)

    def _norm(self, gradients: dict[str, Tensor]) -> float:
        norms = {name: torch.linalg.vector_norm(g) for name, g in gradients.items()}
        if self._shard is not None:
            return self._shard.norm(norms).item()
        return torch.linalg.vector_norm(torch.stack(list(norms.values()))).item()


def _trained(sae: SAE, config: TrainConfig) -> dict[str, Tensor]:
    parameters = dict(sae.named_parameters())
    left_alone = set(config.frozen)
    if unknown := left_alone - set(parameters):
        raise ConfigError(
            f"TrainConfig(frozen={config.frozen}): the dictionary has no "
            f"{', '.join(sorted(unknown))}; it has {', '.join(parameters)}."
        )
    if sae.tied:
        left_alone.add("W_enc")
    return {name: p for name, p in parameters.items() if name not in left_alone}
