"""What does the rest of saelab need from a language model?"""

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.hook_points import HookPoint
from saelab.models.identity import ModelIdentity

__all__ = ["Edit", "LanguageModel", "PositionEdit"]

Edit = Callable[[Tensor], Tensor]
"""Takes the activation [row, pos, d] at a hook point and returns what to put there instead."""


class PositionEdit(abc.ABC):
    """An edit that changes every position by itself, and can be told which positions it is given.

    Inside `editing` with nothing but these, `generate` runs only the new tokens of each step: the
    keys and values of earlier positions, edited as they were, are still right.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Edit whole rows, from position 0 on."""
        return self.from_position(x, 0)

    @abc.abstractmethod
    def from_position(
        self, x: Float[Tensor, "row pos d"], start: int
    ) -> Float[Tensor, "row pos d"]:
        """Edit the end of every row: positions `start` to the last one."""

    @abc.abstractmethod
    def alike(self, before: int, after: int) -> int:
        """How many leading positions it edits alike in rows of `before` and of `after` tokens.

        At most the smaller of the two. Less where positions are counted from a row's end: an edit
        of the last position leaves alone, in a longer row, the one that was last before.
        """


@runtime_checkable
class LanguageModel(Protocol):
    """A language model that can be read and written at its hook points.

    Rows are sequences of token ids, position 0 first. Rows shorter than the rest are padded on the
    right and `mask` is True at the real tokens.
    """

    name: str
    """What the user calls it."""
    device: torch.device
    """Where it computes, and where what it returns lies."""
    dtype: torch.dtype
    """What it computes in."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks; 0 where the model has none that saelab can tell."""
    d_vocab: int
    """Number of token ids."""
    n_ctx: int | None
    """The longest row; None where the model states no limit."""
    bos_token_id: int | None
    """The token to put first in every row; None if the model wants none."""
    special_token_ids: frozenset[int]
    """Tokens that stand for no text: BOS, end of text, padding, chat marks."""
    tokenizer: Any | None
    """The transformers tokenizer, or None: then token ids stand for text everywhere."""

    @property
    def identity(self) -> ModelIdentity:
        """Name, weights and conventions; recorded with everything made from the model."""
        ...

    def hook_points(self) -> list[HookPoint]:
        """The places with names of their own, in the order the model runs them."""
        ...

    def hook_point(self, name: str) -> HookPoint:
        """The place `name` means: TransformerLens spelling or a module path.

        Raises:
            HookPointError: There is no such place; the message offers near misses.
        """
        ...

    def activations(
        self,
        tokens: Int[Tensor, "row pos"],
        hooks: Sequence[str],
        mask: Bool[Tensor, "row pos"] | None = None,
    ) -> dict[str, Float[Tensor, "row pos _"]]:
        """Read the activations at some hook points, running no further than the last of them.

        Args:
            tokens: Token ids.
            hooks: Names in any accepted spelling; they are the keys of the result.
            mask: True at real tokens; None if every token is real.

        Returns:
            For each name [row, pos, width] in the model's dtype, without gradients. Inside
            `editing`, what the model computes with the edits; at an edited place, the edited value.

        Raises:
            HookPointError: A hook point does not exist.
            ConfigError: A token id or a row's length is beyond the model.
            ShapeError: A place does not hold one vector per token.
        """
        ...

    def logits(
        self, tokens: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"] | None = None
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Scores of the next token after every position, without gradients."""
        ...

    def whole_pass(
        self,
        tokens: Int[Tensor, "row pos"],
        hooks: Sequence[str] = (),
        mask: Bool[Tensor, "row pos"] | None = None,
    ) -> tuple[Float[Tensor, "row pos d_vocab"], dict[str, Float[Tensor, "row pos _"]]]:
        """Logits, and activations at some hook points, of one pass to the end.

        The one way through the model that keeps gradients, where the caller's mode allows them:
        inside `editing`, from logits and from later activations back to what an edit put in. The
        model's own weights never get any.

        Args:
            tokens: Token ids.
            hooks: Names in any accepted spelling; they are the keys of the activations.
            mask: True at real tokens; None if every token is real.

        Returns:
            Logits, and for each name [row, pos, width]; at an edited place, the edited value.

        Raises:
            HookPointError: A hook point does not exist, or the pass never reaches it.
        """
        ...

    def editing(self, edits: Mapping[str, Edit]) -> AbstractContextManager[None]:
        """Within the block, put fn(activation) in place of the activation at each hook point.

        Every pass is edited: `logits`, `activations` and `generate`. Blocks nest; at one place the
        outer edit runs first. The model is restored when the block ends, however it ends.

        Raises:
            HookPointError: A hook point does not exist.
            ShapeError: In a pass, an edit returned another shape than it was given.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with no BOS or other special token added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids; where there is no tokenizer, the ids in angle quotes."""
        ...

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, spaces included.

        A token that is a part of a character appears as its bytes: backslash, x, e2.
        """
        ...

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for its answer.

        Raises:
            ModelError: The model has no tokenizer or no chat template.
        """
        ...

    def logit_effects(
        self, directions: Float[Tensor, "latent d_model"]
    ) -> Float[Tensor, "latent d_vocab"]:
        """What each direction of the last residual stream adds to every token's logit.

        effects = directions @ diag(gain of the final norm) @ W_U, minus the mean over the
        vocabulary (which changes no probability). A LayerNorm first removes the direction's mean
        over d_model. The norm's scale, which depends on the data, is left out, and so are a
        soft cap and a scale of the logits: compare effects of one model with each other only.

        Returns:
            float32, on the model's device.

        Raises:
            ModelError: The final norm or the unembedding is not known for this model.
        """
        ...

    def generate(
        self, tokens: Int[Tensor, "row pos"], max_new_tokens: int = 20
    ) -> Int[Tensor, "row longer"]:
        """Continue each row greedily: the likeliest token each time.

        Rows that reach the model's end token are filled with it; the result ends when all have.
        Inside `editing` with nothing but edits of the kind `PositionEdit` it is as fast as without.
        """
        ...
