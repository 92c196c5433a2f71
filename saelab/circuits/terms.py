"""What can add to a read-out on one prompt, and how much did each of it add?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sparse_codes import SparseCodes

__all__ = ["Contributions", "Latents", "Term"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Contributions:
    """What each term adds to some read-outs; all in the read-outs' units, signed."""

    latents: Float[Tensor, "readout latent"]
    """By active latent, in the order of `LocalReplacement.latents`."""
    errors: Float[Tensor, "readout cut pos"]
    """By place written and position; the whole output at an MLP without a dictionary."""
    tokens: Float[Tensor, "readout pos"]
    """By position: the token's embedding."""
    positions: Float[Tensor, "readout pos"]
    """By position: the learned position; zero in a model with rotary positions."""
    decoder_biases: Float[Tensor, "readout cut"]
    """By place written, over all positions."""
    bias: Float[Tensor, " readout"]
    """All other biases of the model, and the read-out's own offset."""

    def table(self) -> Float[Tensor, "readout term"]:
        """All of it side by side, in the order of `LocalReplacement.terms`."""
        parts = [self.latents, self.errors.flatten(1), self.tokens, self.positions]
        return torch.cat([*parts, self.decoder_biases, self.bias[:, None]], dim=1)

    def sums(self) -> Float[Tensor, " readout"]:
        """Everything together, in float64: the value of each read-out."""
        return self.table().double().sum(1)


class Term(NamedTuple):
    """One thing that adds to read-outs."""

    kind: str
    """latent, error, token, position, decoder_bias or bias."""
    hook: str | None = None
    """What a latent reads; where an error or a decoder bias is written."""
    position: int | None = None
    """Where in the prompt."""
    number: int | None = None
    """Which latent, or which token."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """The active latents of one prompt, layer by layer, position by position."""

    site: Int[Tensor, " latent"]
    """Which of the dictionaries' layers."""
    position: Int[Tensor, " latent"]
    """Where in the prompt."""
    index: Int[Tensor, " latent"]
    """Which latent of its dictionary."""
    value: Float[Tensor, " latent"]
    """After the activation function; may be negative."""

    @classmethod
    def of(cls, codes: Sequence[SparseCodes]) -> "Latents":
        """Every latent that is not zero, given each layer's codes of the prompt."""
        return cls(
            site=torch.cat([torch.full_like(one.indices, n) for n, one in enumerate(codes)]),
            position=torch.cat([one.tokens for one in codes]),
            index=torch.cat([one.indices for one in codes]),
            value=torch.cat([one.values for one in codes]),
        )

    def __len__(self) -> int:
        """How many."""
        return len(self.site)

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Site, position and index: what says which latent it is."""
        return self.site, self.position, self.index
