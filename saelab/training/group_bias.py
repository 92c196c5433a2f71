"""Group Bias Adaptation: biases that no gradient moves, but how often latents fire.

The latents are split into groups, each with a target frequency p_k. Over every buffer of tokens,
with y_m = w_m . (x - b_dec) + b_m,

    share_m = share of tokens with y_m > 0       r_m = max(max y_m, 0)
    b_m <- max(b_m - down * r_m, -limit)         if share_m > p_k: it fires too often
    b_m <- min(b_m + up * T_k, 0)                if it never fired; T_k = mean of r over the
                                                 latents of its group that did

Everything else is plain reconstruction: no penalty, no fixed number of latents. b_dec stays at the
data's mean: if it is trained, it drifts until it cancels the negative biases, and the
latents are dense.
"""

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.activation_functions import JumpReLU, ReLU
from saelab.errors import ConfigError
from saelab.objectives import Step
from saelab.sae import SAE
from saelab.training.optimizers import Adam
from saelab.training.upkeep import Upkeep

__all__ = ["GroupBias", "GroupBiasConfig"]


@final
@dataclass(frozen=True, kw_only=True)
class GroupBiasConfig:
    """Groups, their frequencies, and how fast biases move.

    >>> [round(p, 4) for p in GroupBiasConfig(groups=3).frequencies]
    [0.1, 0.01, 0.001]
    """

    groups: int = 10
    """Groups of latents, as equal as can be."""
    highest: float = 0.1
    """Target frequency of the first group, as a share of tokens."""
    lowest: float = 0.001
    """Target frequency of the last; those between are evenly spaced in the logarithm."""
    up: float = 0.01
    """Rate at which the bias of a silent latent rises."""
    down: float = 0.01
    """Rate at which the bias of a latent that fires too often falls."""
    buffer_tokens: int = 8192
    """Tokens between two moves; an independent implementation has 40,960, for longer budgets."""
    limit: float = 1.0
    """Biases stay above minus this, in units of the root mean square length of centred inputs."""

    def __post_init__(self) -> None:
        if self.groups < 1 or not 0 < self.lowest <= self.highest < 1:
            raise ConfigError(
                f"GroupBiasConfig(groups={self.groups}, highest={self.highest}, "
                f"lowest={self.lowest}): needs a group, and 0 < lowest <= highest < 1."
            )
        if self.up <= 0 or self.down <= 0 or self.limit <= 0:
            raise ConfigError(
                f"GroupBiasConfig(up={self.up}, down={self.down}, limit={self.limit}) must all be "
                "positive."
            )
        if self.buffer_tokens * self.lowest < 4:
            raise ConfigError(
                f"GroupBiasConfig(buffer_tokens={self.buffer_tokens}, lowest={self.lowest}): a "
                f"latent on target would fire {self.buffer_tokens * self.lowest:.1f} times in a "
                f"buffer, too few to tell. Use at least {-int(-4 // self.lowest):,} tokens."
            )

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Target frequency of each group."""
        ratio = self.lowest / self.highest
        steps = max(self.groups - 1, 1)
        return tuple(self.highest * ratio ** (group / steps) for group in range(self.groups))


@final
class GroupBias(Upkeep):
    """Moves the biases of a ReLU dictionary, or the thresholds of a JumpReLU one (then b = -theta).

    With JumpReLU an active latent keeps its full length, where ReLU takes the bias off it.

    Args:
        config: Groups and rates.

    Source: Chen, Sheen, Xiong, Wang and Yang 2025, "Taming polysemanticity in LLMs: provable
    feature recovery via sparse autoencoders". The limit is scaled with the data here; the paper's
    output scale of every latent is left out.
    """

    name = "group_bias"

    def __init__(self, config: GroupBiasConfig | None = None) -> None:
        self.config = config or GroupBiasConfig()
        self._counts: Tensor | None = None
        self._largest: Tensor | None = None
        self._tokens = torch.zeros((), dtype=torch.int64)

    def groups(self, d_sae: int) -> Int[Tensor, " d_sae"]:
        """Which group each latent is in: neighbors together."""
        return torch.arange(d_sae) * self.config.groups // d_sae

    @torch.no_grad()
    def after_step(
        self,
        step: Step,
        optimizer: Adam,
        dead: Bool[Tensor, " d_sae"],  # noqa: ARG002
        tokens_done: int,  # noqa: ARG002
    ) -> str | None:
        """Count who fired, and how far above zero; at the end of a buffer, move the biases."""
        sae, pairs = step.sae, step.forward.pairs
        if self._counts is None or self._largest is None:
            moved = _moved(sae)
            if f"first.{moved}" in optimizer.state():
                raise ConfigError(
                    f"GroupBias moves {moved} itself, so the optimizer must not: use "
                    f"TrainConfig(frozen=({moved!r}, 'b_dec'))."
                )
            if self.config.groups > sae.d_sae:
                raise ConfigError(f"{self.config.groups} groups for {sae.d_sae} latents: use less.")
            self._counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
            self._largest = torch.zeros(sae.d_sae, dtype=sae.dtype, device=sae.device)
        active = step.forward.latents > 0
        indices, above = pairs.indices[active], step.forward.latents[active]
        if isinstance(sae.activation, JumpReLU):
            above = above - sae.activation.threshold[indices].to(above.dtype)
        self._counts += torch.bincount(indices, minlength=sae.d_sae)
        self._largest.scatter_reduce_(0, indices, above.to(sae.dtype), "amax")
        self._tokens += pairs.n_tokens
        if int(self._tokens) >= self.config.buffer_tokens:
            self._move(sae, self._counts, self._largest, step.variance**0.5)
            self._counts.zero_()
            self._largest.zero_()
            self._tokens.zero_()
        return None

    def state(self) -> dict[str, Tensor]:
        """The unfinished buffer's statistics."""
        if self._counts is None or self._largest is None:
            return {"tokens": self._tokens}
        return {"tokens": self._tokens, "counts": self._counts, "largest": self._largest}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._tokens = state["tokens"].clone()
        self._counts, self._largest = state.get("counts"), state.get("largest")

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self.config)}

    def _move(self, sae: SAE, counts: Tensor, largest: Tensor, length: float) -> None:
        config, groups = self.config, self.groups(sae.d_sae).to(counts.device)
        target = torch.tensor(config.frequencies, device=counts.device)[groups]
        fired = counts > 0
        sums = largest.new_zeros(config.groups).index_add_(0, groups, largest)
        alive = torch.bincount(groups[fired], minlength=config.groups)
        # A group that is silent as a whole borrows the mean over all groups.
        overall = largest.sum() / fired.sum().clamp(min=1)
        rise = torch.where(alive > 0, sums / alive.clamp(min=1), overall)[groups]
        bias = _bias(sae)
        lower = (bias - config.down * largest).clamp(min=-config.limit * length)
        higher = (bias + config.up * rise).clamp(max=0)
        often = counts > target * int(self._tokens)
        bias = torch.where(often, lower, torch.where(fired, bias, higher))
        if isinstance(sae.activation, JumpReLU):
            sae.activation.threshold.copy_(-bias)
        else:
            sae.b_enc.copy_(bias)


def _bias(sae: SAE) -> Float[Tensor, " d_sae"]:
    if isinstance(sae.activation, JumpReLU):
        return -sae.activation.threshold.detach().to(sae.dtype)
    return sae.b_enc.detach()


def _moved(sae: SAE) -> str:
    """The parameter that is moved; the optimizer must leave it alone."""
    if not isinstance(sae.activation, ReLU | JumpReLU):
        raise ConfigError(
            f"GroupBias sets how often latents fire by their biases; {sae.activation} already "
            "fixes how many do. Use ReLU(), or JumpReLU()."
        )
    return "activation.threshold" if isinstance(sae.activation, JumpReLU) else "b_enc"
