"""How does a model run on codes alone, and how does a gradient get past them?

The activation h is replaced by r = decode(encode(h)). Which codes are on does not change with h
smoothly, so backwards h is treated as if it had been left alone (straight-through):

    forward  r          backward  dL/dh = dL/dr,   dL/dcodes = the true one
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.models import LanguageModel, PositionEdit
from saelab.sae import SAE
from saelab.same_model import require_same_model

__all__ = ["Bottleneck", "inserted", "straight_through"]


def straight_through(
    h: Float[Tensor, "*batch d"], recons: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch d"]:
    """The reconstruction, with the gradient of the activation in its place.

    >>> import torch
    >>> h = torch.tensor([1.0], requires_grad=True)
    >>> out = straight_through(h, torch.tensor([5.0]))
    >>> out.item(), torch.autograd.grad(out.sum(), h)[0].item()
    (5.0, 1.0)
    """
    return recons + (h - h.detach())


@contextmanager
def inserted(
    model: LanguageModel, codebooks: Sequence[SAE], *, skip_first: bool = True
) -> Iterator[None]:
    """Within the block, the activation at each codebook's hook point is its reconstruction.

    Args:
        model: The running model; restored when the block ends, however it ends.
        codebooks: Of different hook points; any autoencoder will do.
        skip_first: Leave the model's first token, where it wants one, as it is.

    Raises:
        ConfigError: Two dictionaries are of one hook point, or one names none or is a transcoder.
        ModelError: A dictionary belongs to another model.
    """
    edits: dict[str, Bottleneck] = {}
    first = 1 if skip_first and model.bos_token_id is not None else 0
    for codebook in codebooks:
        if codebook.hook is None or codebook.is_transcoder or codebook.hook in edits:
            raise ConfigError(
                f"Codebooks are put in place of what they read, one at each hook point; found "
                f"hook={codebook.hook!r}, hook_out={codebook.hook_out!r}."
            )
        require_same_model(codebook, model.identity.to_json())
        edits[codebook.hook] = Bottleneck(codebook, first)
    with model.editing(edits):
        yield


@final
class Bottleneck(PositionEdit):
    """The reconstruction in place of the activation, straight through."""

    def __init__(self, codebook: SAE, first: int) -> None:
        self.codebook, self.first = codebook, first
        self.read: Tensor | None = None
        """What it last replaced, and"""
        self.recons: Tensor | None = None
        """what it was replaced with; for terms of a loss."""

    def from_position(self, x: Tensor, start: int) -> Tensor:
        """Replace positions from the first on."""
        left = min(max(self.first - start, 0), x.shape[1])
        read = x[:, left:]
        recons = self.codebook(read.detach()).to(x.dtype)
        self.read, self.recons = read.detach(), recons
        out = x.clone()
        out[:, left:] = straight_through(read, recons)
        return out

    def alike(self, before: int, after: int) -> int:
        """All of them: every position is replaced by itself."""
        return min(before, after)
