"""What every activation function promises."""

import abc
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import Pairs
from saelab.kernels.encoding import Selected

__all__ = ["ActivationFunction", "SelectAgain"]


class SelectAgain(Exception):
    """Raised by `settle` when too few candidates were collected; the next pass collects more."""


class ActivationFunction(nn.Module, abc.ABC):
    """Pre-activations to latents, densely (`forward`) and at chosen pairs.

    Inference calls `select` and `at_pairs`, a token at a time as it were: nothing may depend on
    the other tokens of the batch. Training calls `begin_step`, `select_training` on each chunk of
    pre-activations, then `settle` on the pairs of the whole batch, then `at_pairs`; after the
    optimizer's step, `observe` and `constrain`. Both call `prepare` before the first chunk.
    """

    name: str
    """How it is called on disk."""
    signed = False
    """Whether latents can be negative."""
    reads: tuple[str, ...] = ()
    """Hook points of the store, besides the dictionary's own, that training selections need."""

    @property
    def target_l0(self) -> float | None:
        """How many latents per token it aims at, where it does."""
        return None

    def setup(self, d_in: int, d_sae: int) -> None:
        """Check against the dictionary's sizes, and make parameters of that size if any."""

    def attach(self, W_dec: Float[Tensor, "d_sae d_out"], *, tied: bool) -> None:
        """Get hold of the decoder, for a function whose latents depend on each other through it.

        Args:
            W_dec: The dictionary's own parameter, not a copy.
            tied: Whether the encoder is the decoder transposed.
        """

    @abc.abstractmethod
    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The definition at inference, on a dense matrix."""

    @abc.abstractmethod
    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Row (ascending), latent and pre-activation of every entry that is not zero."""

    @abc.abstractmethod
    def at_pairs(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """Latents of selected entries, differentiable in `pre_acts` and in own parameters."""

    def begin_step(self, progress: float, extra: Mapping[str, Tensor]) -> None:
        """Prepare for a training step.

        Args:
            progress: Share of the training budget spent so far, 0 to 1.
            extra: The rows of the hook points named in `reads`, in the order of the batch.
        """

    def prepare(
        self, inputs: Float[Tensor, "token d_in"], W_dec: Float[Tensor, "d_sae d_out"]
    ) -> None:
        """Look at what the next selections are made from, where pre-activations do not suffice.

        Called before every pass over a batch, in training and inference; the chunks of
        pre-activations that `select` or `select_training` then see are those of `inputs`, in order.

        Args:
            inputs: Encoder input, centred and normalized.
            W_dec: Decoder directions, in the units of the latents.
        """

    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Every entry that can be active or receive gradient in a training step."""
        return self.select(pre_acts)

    def settle(
        self,
        pairs: Pairs,  # noqa: ARG002
        pre_acts: Float[Tensor, " pair"],  # noqa: ARG002
    ) -> Bool[Tensor, " pair"] | None:
        """Which of the batch's collected pairs stay; None for all.

        Raises:
            SelectAgain: Too few were collected to decide.
        """
        return None

    def observe(self, latents: Float[Tensor, " pair"]) -> None:
        """Learn from a training batch's latents what inference will need."""

    def constrain(self) -> None:
        """Bring parameters back into their range after an optimizer step."""

    def strength(self, pre_acts: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """By what a latent competes with others: its value, or its size if latents are signed."""
        return pre_acts.abs() if self.signed else pre_acts

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Name and settings; tensors are saved with the weights instead."""

    def saelens(self) -> tuple[str, dict[str, Any]] | None:
        """SAELens's architecture that computes the same and its settings; None if there is none."""
        return None

    def file_tensors(self) -> dict[str, Tensor]:
        """What the weights file holds besides the four weights, under SAELens's names."""
        return {}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `file_tensors` gave."""
        if tensors:
            raise CheckpointError(
                f"The weights file holds {', '.join(sorted(tensors))}, which {self} does not have."
            )


def require_latents(rule: ActivationFunction, k: int | float, d_sae: int) -> None:
    """Refuse to keep more latents than there are.

    Raises:
        ConfigError: k exceeds d_sae.
    """
    if k > d_sae:
        raise ConfigError(
            f"{type(rule).__name__}(k={k}) asks for more latents than the dictionary has "
            f"(d_sae={d_sae})."
        )


def picks(
    pre_acts: Float[Tensor, "row d_sae"],
    strength: Float[Tensor, "row k"],
    indices: Int[Tensor, "row k"],
) -> Selected:
    """Of the strongest entries of each row, those whose strength is positive."""
    row, place = (strength > 0).nonzero(as_tuple=True)
    latent = indices[row, place]
    return row, latent, pre_acts[row, latent]


def zeros_except(
    pre_acts: Float[Tensor, "*batch d_sae"], kept: Bool[Tensor, "*batch d_sae"]
) -> Float[Tensor, "*batch d_sae"]:
    """The kept entries; zero elsewhere."""
    return torch.where(kept, pre_acts, torch.zeros_like(pre_acts))
