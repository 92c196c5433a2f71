"""Activation functions: from pre-activations to latents, densely and by pairs.

A family of dictionaries is an activation function times an objective. Each activation function
says three things: what it computes (`forward`, on a dense matrix: the definition), which entries
of a chunk of pre-activations can be non-zero or receive gradient (`select`), and its value at
those entries (`at_pairs`). The last two are what training and encoding run; a contract test
holds them equal to the first.
"""

import abc
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.errors import CheckpointError, ConfigError
from saelab.kernels.encoding import Selected
from saelab.kernels.selection import top_k

__all__ = ["ACTIVATION_FUNCTIONS", "ActivationFunction", "ReLU", "TopK", "from_json"]


class ActivationFunction(nn.Module, abc.ABC):
    """Pre-activations to latents."""

    name: str
    """How it is called on disk."""
    signed = False
    """Whether latents can be negative."""

    def setup(self, d_sae: int) -> None:
        """Check against the dictionary's size, and make parameters of that size if any."""

    @abc.abstractmethod
    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The definition, on a dense matrix."""

    @abc.abstractmethod
    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Row (ascending), latent and pre-activation of every entry that can matter."""

    @abc.abstractmethod
    def at_pairs(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """Latents of selected entries, differentiable in `pre_acts` and in own parameters."""

    def strength(self, pre_acts: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """By what a latent competes with others: its value, or its size if latents are signed."""
        return pre_acts.abs() if self.signed else pre_acts

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Name and settings; tensors are saved with the weights instead."""


@final
class ReLU(ActivationFunction):
    """Latents are the positive pre-activations: f = max(z, 0).

    >>> ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    name = "relu"

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """F = max(z, 0)."""
        return pre_acts.relu()

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The positive entries."""
        row, latent = (pre_acts > 0).nonzero(as_tuple=True)
        return row, latent, pre_acts[row, latent]

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """F = max(z, 0)."""
        return pre_acts.relu()

    def to_json(self) -> dict[str, Any]:
        """Just the name."""
        return {"name": self.name}


@final
class TopK(ActivationFunction):
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

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"TopK(k={k}) keeps no latent; k is the number kept per token.")
        self.k = k

    def setup(self, d_sae: int) -> None:
        """Refuse more latents than there are."""
        if self.k > d_sae:
            raise ConfigError(
                f"TopK(k={self.k}) asks for more latents than the dictionary has (d_sae={d_sae})."
            )

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """F = ReLU(TopK_k(z))."""
        values, indices = pre_acts.topk(self.k, dim=-1)
        return torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The k largest of each row that are positive."""
        return positive_pairs(*top_k(pre_acts, self.k))

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """F = max(z, 0)."""
        return pre_acts.relu()

    def to_json(self) -> dict[str, Any]:
        """Name and k."""
        return {"name": self.name, "k": self.k}

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"k={self.k}"


def positive_pairs(values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"]) -> Selected:
    """The picks with a positive value, as (row, latent, value)."""
    row, place = (values > 0).nonzero(as_tuple=True)
    return row, indices[row, place], values[row, place]


ACTIVATION_FUNCTIONS: dict[str, type[ActivationFunction]] = {"relu": ReLU, "topk": TopK}
"""Every activation function by its name on disk; a test asserts that none is missing."""


def from_json(settings: dict[str, Any]) -> ActivationFunction:
    """The activation function that `to_json` described.

    Raises:
        CheckpointError: The name or a setting is unknown, as in a file from a newer version.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in ACTIVATION_FUNCTIONS:
        raise CheckpointError(
            f"The dictionary's activation function is {name!r}; this version knows "
            f"{', '.join(ACTIVATION_FUNCTIONS)}. It may come from a newer version of saelab."
        )
    try:
        return ACTIVATION_FUNCTIONS[name](**arguments)
    except TypeError as error:
        raise CheckpointError(f"The settings of {name!r} are not understood: {error}.") from None
