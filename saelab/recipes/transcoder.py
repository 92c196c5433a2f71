"""Transcoder: latents that read what an MLP reads and write what it writes.

    f = TopK_k(W_enc x + b_enc)        y_hat = W_dec f + b_dec
    loss = |y - y_hat|^2 / variance + 1/32 AuxK

Dunefsky, Chlenski, Nanda 2024, "Transcoders find interpretable LLM feature circuits". Different:
k latents per token instead of an L1 penalty on ReLU latents (any rule can be chosen); b_dec is not
subtracted from the input, which it does not belong to, and starts at mean(y); b_enc starts at
-W_enc mean(x); decoder directions are kept at norm 1 and start where y goes when their latent is
active; input and output have scales of their own.
"""

from dataclasses import dataclass, replace
from typing import Literal, final

from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    BatchTopK,
    JumpReLU,
    TopK,
)
from saelab.errors import ConfigError
from saelab.objectives import AuxK, Reconstruction, TargetL0, Term
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig

__all__ = ["Rule", "TranscoderRecipe", "mlp_output_of", "rule_of", "rule_terms"]

Rule = Literal["topk", "batch_topk", "abs_topk", "jumprelu"]
"""Which latents are active."""


@final
@dataclass(frozen=True, kw_only=True)
class TranscoderRecipe(Recipe):
    """A transcoder of one MLP."""

    hook_out: str | None = None
    """Hook point it writes; None for the output of the MLP whose input it reads."""
    k: int = 32
    """Latents per token; aimed at, with jumprelu."""
    rule: Rule = "topk"
    """Which latents are active."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> ActivationFunction:
        """From pre-activations to latents."""
        return rule_of(self.rule, self.k)

    def terms(self) -> tuple[Term, ...]:
        """Squared error, and what the rule needs."""
        return rule_terms(self.rule, self.k, self.auxk)

    def training(self) -> TrainConfig:
        """b_dec starts at the mean of what is written."""
        return replace(super().training(), center="mean")

    def dictionary(self, store: ActivationStore) -> SAE:
        """The untrained transcoder."""
        target = mlp_output_of(store, self.hook_out)
        return SAE(
            store.d_in,
            self.d_sae,
            self.activation(),
            hook=store.hook,
            hook_out=target,
            d_out=store.widths[target],
            seed=self.seed,
        )


def rule_of(rule: Rule, k: int) -> ActivationFunction:
    """The activation function of a rule."""
    made = {"topk": TopK, "batch_topk": BatchTopK, "abs_topk": AbsTopK}
    return JumpReLU() if rule == "jumprelu" else made[rule](k)


def rule_terms(rule: Rule, k: int, auxk: float) -> tuple[Term, ...]:
    """The objective of a rule."""
    if rule == "jumprelu":
        return Reconstruction(), TargetL0(target=float(k))
    return Reconstruction(), AuxK(coefficient=auxk)


def mlp_output_of(store: ActivationStore, hook_out: str | None = None) -> str:
    """Where the MLP writes whose input a store reads by default.

    Args:
        store: Its `hook` is what will be read.
        hook_out: The answer, where the user gave one.

    Raises:
        ConfigError: The store reads no MLP's input, or lacks the output.

    >>> import torch
    >>> both = {f"blocks.4.{end}": torch.ones(2, 3) for end in ("mlp.hook_in", "hook_mlp_out")}
    >>> mlp_output_of(ActivationStore.from_tensor(both))
    'blocks.4.hook_mlp_out'
    """
    if hook_out is None and not store.hook.endswith("mlp.hook_in"):
        raise ConfigError(
            f"A transcoder reads an MLP's input, such as blocks.15.mlp.hook_in; the store reads "
            f"{store.hook}. Name both ends: --hook and --hook-out."
        )
    target = hook_out or store.hook.removesuffix("mlp.hook_in") + "hook_mlp_out"
    if target not in store.hooks:
        raise ConfigError(
            f"The store has no {target}, which a transcoder of {store.hook} writes; it has "
            f"{', '.join(store.hooks)}. Harvest both together."
        )
    return target
