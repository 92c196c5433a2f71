"""Codebook: k codes are on for every token, all alike, and the activation is their mean.

    on = the k codes of largest cosine with x - b_dec        x_hat = b_dec + mean of the codes on
    loss = |x - x_hat|^2 / variance, by the codes alone

Tamkin, Taufeeque and Goodman 2023, "Codebook features: sparse and discrete interpretability for
neural networks". Followed: codes of any length chosen by cosine, the mean of k codes, k-means at
the start, dead codes replaced; with k = 1 this is vector quantization. Different: this program
learns codes from stored activations only ("aeloss" without the model's loss); the source has the
codebook in the model and trains both, which `saelab.codebooks.learn_codes` does with a frozen
model. b_dec stands where the source has a LayerNorm. Its default is 100 of 10,000 codes.
"""

from dataclasses import dataclass, replace
from typing import Literal, final

from saelab.activation_functions import Codes
from saelab.codebooks import start_codes
from saelab.objectives import Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig
from saelab.training.resampling import Resampling

__all__ = ["CodebookRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class CodebookRecipe(Recipe):
    """A codebook."""

    k: int = 8
    """Codes per token."""
    reduce: Literal["mean", "sum"] = "mean"
    """How the codes that are on are joined."""
    start_tokens: int = 16_384
    """Activations whose centers codes start at."""
    start_rounds: int = 5
    """Rounds of k-means."""
    replaced_every: float = 0.15
    """Share of the budget between two of the four occasions on which dead codes are replaced."""

    def activation(self) -> Codes:
        """The k of largest cosine."""
        return Codes(self.k, self.reduce)

    def terms(self) -> tuple[Reconstruction]:
        """Squared error."""
        return (Reconstruction(),)

    def upkeep(self) -> tuple[Resampling]:
        """Dead codes are replaced."""
        return (Resampling(max(1, round(self.replaced_every * self.tokens)), seed=self.seed),)

    def training(self) -> TrainConfig:
        """The loop's settings; a code's length is its own."""
        return replace(super().training(), decoder="free")

    def dictionary(self, store: ActivationStore) -> SAE:
        """Codes at the centers of a sample."""
        hook = store.hook
        codebook = SAE(
            store.d_in, self.d_sae, self.activation(), hook=hook, tied=True, seed=self.seed
        )
        sample = store.sample(min(self.start_tokens, store.n_tokens), seed=self.seed)
        start_codes(codebook, sample, iterations=self.start_rounds)
        return codebook
