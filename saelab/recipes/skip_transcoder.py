"""Skip transcoder: a transcoder with a linear path beside its latents.

    f = TopK_k(W_enc x + b_enc)        y_hat = W_dec f + W_skip x + b_dec
    loss = |y - y_hat|^2 / variance + 1/32 AuxK

Paulo, Shabalin, Belrose 2025, "Transcoders beat sparse autoencoders for interpretability", and its
code in EleutherAI's sparsify. W_skip starts at zero there and here. With start "zero" so does
W_dec, as there: the untrained dictionary writes mean(y) exactly, nothing keeps decoder directions
at norm 1, and the first step moves only the decoder, because a zero decoder gives the encoder no
gradient. With start "aimed", the default, directions have norm 1 and point where y goes when their
latent is active.
"""

from dataclasses import dataclass, replace
from typing import Literal, final

import torch

from saelab.activation_functions import ActivationFunction
from saelab.objectives import Term
from saelab.recipes.base import Recipe
from saelab.recipes.transcoder import Rule, mlp_output_of, rule_of, rule_terms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig

__all__ = ["SkipTranscoderRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class SkipTranscoderRecipe(Recipe):
    """A transcoder of one MLP, with a skip connection."""

    hook_out: str | None = None
    """Hook point it writes; None for the output of the MLP whose input it reads."""
    k: int = 32
    """Latents per token; aimed at, with jumprelu."""
    rule: Rule = "topk"
    """Which latents are active."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""
    start: Literal["aimed", "zero"] = "aimed"
    """Where decoder directions start."""

    def activation(self) -> ActivationFunction:
        """From pre-activations to latents."""
        return rule_of(self.rule, self.k)

    def terms(self) -> tuple[Term, ...]:
        """Squared error, and what the rule needs."""
        return rule_terms(self.rule, self.k, self.auxk)

    def training(self) -> TrainConfig:
        """b_dec starts at the mean of what is written; a zero start leaves norms free."""
        return replace(
            super().training(),
            center="mean",
            decoder="free" if self.start == "zero" else "unit",
        )

    def dictionary(self, store: ActivationStore) -> SAE:
        """The untrained transcoder."""
        target = mlp_output_of(store, self.hook_out)
        sae = SAE(
            store.d_in,
            self.d_sae,
            self.activation(),
            hook=store.hook,
            hook_out=target,
            d_out=store.widths[target],
            skip=True,
            seed=self.seed,
        )
        if self.start == "zero":
            with torch.no_grad():
                sae.W_dec.zero_()
        return sae
