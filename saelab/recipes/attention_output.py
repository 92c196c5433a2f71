"""Attention output: a TopK dictionary that starts inside the subspace its activations use.

    f = ReLU(TopK_k(W_enc (z - b_dec) + b_enc))        z_hat = W_dec f + b_dec
    loss = |z - z_hat|^2 / variance + 1/32 AuxK

Kissane, Krzyzanowski, Bloom, Conmy, Nanda 2024, "Interpreting attention layer outputs with sparse
autoencoders", which reads the heads' outputs side by side before W_O (`attn.hook_z`); what the
layer adds to the residual stream (`hook_attn_out`) works as well. Different: TopK instead of an L1
penalty with resampling. These activations fill part of their space only, and random directions
outside it stay dead; directions that start inside the span of the leading principal components do
so less (arXiv 2508.16929).
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import TopK
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.active_subspace import initialize_in_subspace

__all__ = ["AttentionOutputRecipe"]

SAMPLE_TOKENS = 16_384
"""How many activations the subspace is measured on."""


@final
@dataclass(frozen=True, kw_only=True)
class AttentionOutputRecipe(Recipe):
    """A TopK dictionary of attention outputs."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""
    subspace: bool = True
    """Start inside the subspace the activations use."""
    share: float = 0.99
    """Share of the variance that the subspace holds, 0 to 1."""
    rank: int | None = None
    """Dimensions of the subspace, in place of `share`."""

    def activation(self) -> TopK:
        """The k largest."""
        return TopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)

    def dictionary(self, store: ActivationStore) -> SAE:
        """The untrained dictionary, inside the subspace if that is asked for."""
        sae = super().dictionary(store)
        if self.subspace:
            sample = store.sample(min(SAMPLE_TOKENS, store.n_tokens), seed=self.seed)
            initialize_in_subspace(sae, sample, rank=self.rank, share=self.share)
        return sae
