"""Activation functions that decide token by token and have nothing to learn."""

import abc
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activation_functions.base import (
    ActivationFunction,
    picks,
    require_latents,
    zeros_except,
)
from saelab.errors import ConfigError
from saelab.kernels import above, top_k_pairs
from saelab.kernels.encoding import Selected

__all__ = ["AbsTopK", "GroupMax", "ReLU", "TopK"]


@final
class ReLU(ActivationFunction):
    """Latents are the positive pre-activations: f = max(z, 0).

    >>> ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    name = "relu"

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = max(z, 0)."""
        return pre_acts.relu()

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The positive entries."""
        return above(pre_acts, 0.0)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = max(z, 0)."""
        return pre_acts.relu()

    def to_json(self) -> dict[str, Any]:
        """Just the name."""
        return {"name": self.name}

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's standard architecture."""
        return "standard", {}


class _FixedNumber(ActivationFunction, abc.ABC):
    """The same number of latents for every token, at most."""

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(
                f"{type(self).__name__}(k={k}) keeps no latent; k is the number kept per token."
            )
        self.k = k

    @property
    def target_l0(self) -> float:
        """k."""
        return float(self.k)

    def to_json(self) -> dict[str, Any]:
        """Name and k."""
        return {"name": self.name, "k": self.k}

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"k={self.k}"


@final
class TopK(_FixedNumber):
    """Keep the k largest pre-activations of each token, then clip at zero.

        f = ReLU(TopK_k(z))

    Fewer than k latents are active on a token with fewer than k positive pre-activations: a
    selected zero counts neither as fired nor receives gradient.

    Args:
        k: Latents per token, at least 1.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; the ReLU is in the
    authors' code.

    >>> TopK(1)(torch.tensor([3.0, 5.0, -1.0]))
    tensor([0., 5., 0.])
    """

    name = "topk"

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more latents than there are."""
        require_latents(self, self.k, d_sae)

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = ReLU(TopK_k(z))."""
        values, indices = pre_acts.topk(self.k, dim=-1)
        return torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The k largest of each row that are positive."""
        return top_k_pairs(pre_acts, self.k)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = max(z, 0)."""
        return pre_acts.relu()

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's topk, which clips at zero too."""
        return "topk", {"k": self.k, "rescale_acts_by_decoder_norm": False}


@final
class AbsTopK(_FixedNumber):
    """Keep the k pre-activations of largest size, with their sign.

        f = z where |z| is among the k largest of the token, else 0

    One latent can stand for a concept and, negative, for its opposite. The sign of a latent is a
    convention: flipping latent, encoder and decoder direction together changes nothing.

    Args:
        k: Latents per token, at least 1.

    Source: Zhu, Khalili and Zhu 2026: one proximal step for a bound on the number of latents.

    >>> AbsTopK(1)(torch.tensor([3.0, -5.0, -1.0]))
    tensor([ 0., -5.,  0.])
    """

    name = "abstopk"
    signed = True

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more latents than there are."""
        require_latents(self, self.k, d_sae)

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The k entries of largest size, with their sign."""
        indices = pre_acts.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre_acts).scatter(-1, indices, pre_acts.gather(-1, indices))

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The k of largest size of each row."""
        return top_k_pairs(pre_acts, self.k, signed=True)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = z."""
        return pre_acts

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's abstopk."""
        return "abstopk", {"k": self.k, "rescale_acts_by_decoder_norm": False}


@final
class GroupMax(_FixedNumber):
    """Split the latents into k groups of neighbors; each token keeps each group's largest.

        f_i = max(z_i, 0) if z_i is the largest of its group, else 0

    Cheaper to select than TopK, at the price that two latents of one group never fire together.

    Args:
        k: Groups, and so latents per token at most; must divide d_sae.

    Source: EleutherAI's sparsify.

    >>> GroupMax(2)(torch.tensor([3.0, 5.0, -1.0, -2.0]))
    tensor([0., 5., 0., 0.])
    """

    name = "groupmax"

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse groups of unequal size."""
        if d_sae % self.k:
            raise ConfigError(
                f"GroupMax(k={self.k}) needs groups of equal size, but d_sae={d_sae} is not a "
                f"multiple of {self.k}; the nearest that is: {max(d_sae // self.k, 1) * self.k}."
            )

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Each group's largest entry, clipped at zero."""
        groups = pre_acts.unflatten(-1, (self.k, -1))
        largest = groups.argmax(-1, keepdim=True)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, largest, True)
        return zeros_except(pre_acts, kept.flatten(-2)).relu()

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The positive ones among the groups' maxima."""
        size = pre_acts.shape[1] // self.k
        values, places = pre_acts.unflatten(1, (self.k, size)).max(-1)
        starts = torch.arange(0, pre_acts.shape[1], size, device=pre_acts.device)
        return picks(pre_acts, values, places + starts)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = max(z, 0)."""
        return pre_acts.relu()
