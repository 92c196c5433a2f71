"""top-AFA: each token keeps as many latents as give its code the length of the activation.

If decoder directions were orthogonal, a faithful code f of the centred activation c would have

    |c|^2 = sum_i (f_i |W_dec[i]|)^2

so the number of latents need not be chosen: sort the summands, and stop where the running sum is
nearest to what is wanted,

    k(x) = argmin_j | sqrt(sum of the j largest (f_i |W_dec[i]|)^2) - |c| |,  f = ReLU(z), j >= 1.

Directions that are far from orthogonal break the premise: then the code becomes dense.
"""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activation_functions.base import ActivationFunction, zeros_except
from saelab.errors import ConfigError
from saelab.kernels import top_k
from saelab.kernels.encoding import Selected

__all__ = ["NormMatching"]

CAP = 128
"""Latents sorted at first; a token that needs more sorts 4 times as many, and so on to all."""


@final
class NormMatching(ActivationFunction):
    """Keep the strongest latents of a token until their length matches the activation's.

    Args:
        norm: The length to match; None for the length of each token's centred input.

    Source: Lee, Davies, Canby and Hockenmaier 2025, "Evaluating and designing sparse autoencoders
    by approximating quasi-orthogonality", and the authors' code. There the last running sum is
    given a huge value so that it is never chosen; here it can be.

    >>> gate = NormMatching(norm=5.0)
    >>> gate(torch.tensor([1.0, 4.0, -9.0, 3.0]))  # sqrt(16 + 9) = 5
    tensor([0., 4., 0., 3.])
    """

    name = "normmatching"

    def __init__(self, norm: int | float | None = None) -> None:
        super().__init__()
        if norm is not None and not norm > 0:
            raise ConfigError(f"NormMatching(norm={norm}): a length must be positive.")
        self.norm = None if norm is None else float(norm)
        self._norms: Tensor | None = None
        self._lengths: Tensor | None = None
        self._row = 0

    def prepare(
        self, inputs: Float[Tensor, "token d_in"], W_dec: Float[Tensor, "d_sae d_out"]
    ) -> None:
        """Measure the inputs and the decoder directions; the chunks start at row 0."""
        self._norms = torch.linalg.vector_norm(inputs.detach(), dim=1)
        self._lengths = torch.linalg.vector_norm(W_dec.detach(), dim=1)
        self._row = 0

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The chosen entries, where the rows are those `prepare` saw or the length is given.

        Raises:
            ConfigError: The lengths of these rows are not known.
        """
        rows = pre_acts.reshape(-1, pre_acts.shape[-1])
        self._row = 0
        row, latent = self._chosen(rows.detach())
        kept = torch.zeros_like(rows, dtype=torch.bool)
        kept[row, latent] = True
        return zeros_except(pre_acts, kept.reshape(pre_acts.shape))

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The chosen entries of each row."""
        row, latent = self._chosen(pre_acts)
        return row, latent, pre_acts[row, latent]

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """f = z: chosen entries are positive."""
        return pre_acts

    def to_json(self) -> dict[str, Any]:
        """Name and the length, if it is fixed."""
        return {"name": self.name, "norm": self.norm}

    def extra_repr(self) -> str:
        """Shown by print."""
        return "" if self.norm is None else f"norm={self.norm:g}"

    def _wanted(self, pre_acts: Tensor) -> Float[Tensor, " row"]:
        if self.norm is not None:
            return pre_acts.new_full((len(pre_acts),), self.norm)
        known = 0 if self._norms is None else len(self._norms)
        if self._norms is None or self._row + len(pre_acts) > known:
            raise ConfigError(
                f"NormMatching needs the length of {self._row + len(pre_acts)} inputs and knows "
                f"{known}: pre-activations alone do not say how many latents to keep. "
                "Use sae.encode(x), or NormMatching(norm=...)."
            )
        self._row += len(pre_acts)
        return self._norms[self._row - len(pre_acts) : self._row]

    def _chosen(self, pre_acts: Float[Tensor, "row d_sae"]) -> tuple[Tensor, Tensor]:
        """Row (ascending) and latent of every entry that is kept."""
        wanted = self._wanted(pre_acts)
        pieces = pre_acts.relu()
        if self._lengths is not None and len(self._lengths) == pieces.shape[1]:
            pieces *= self._lengths
        pieces.square_()
        rows = torch.arange(len(pieces), device=pieces.device)
        cap, found = min(CAP, pieces.shape[1]), []
        while len(rows):
            some = pieces if len(rows) == len(pieces) else pieces[rows]
            values, latents = top_k(some, cap)
            values, order = values.sort(dim=1, descending=True)
            lengths = values.cumsum(1).sqrt()
            # The running length only grows: once past the wanted one, the nearest is behind us.
            done = lengths[:, -1] >= wanted[rows]
            if cap == pieces.shape[1]:
                done = torch.ones_like(done)
            kept = _up_to_nearest(lengths[done], wanted[rows[done]]) & (values[done] > 0)
            row, place = kept.nonzero(as_tuple=True)
            found.append((rows[done][row], latents.gather(1, order)[done][row, place]))
            rows, cap = rows[~done], min(4 * cap, pieces.shape[1])
        if not found:
            return rows, rows
        row, latent = (torch.cat(part) for part in zip(*found, strict=True))
        order = torch.sort(row, stable=True).indices
        return row[order], latent[order]


def _up_to_nearest(lengths: Float[Tensor, "row rank"], wanted: Float[Tensor, " row"]) -> Tensor:
    """True up to the first running length that is as near to the wanted one as any, to rounding."""
    off = (lengths - wanted.unsqueeze(1)).abs()
    reached = torch.minimum(wanted.unsqueeze(1), lengths[:, -1:])
    slack = 16 * torch.finfo(lengths.dtype).eps * reached
    nearest = off <= off.amin(1, keepdim=True) + slack
    first = nearest.to(torch.int8).argmax(1, keepdim=True)
    return torch.arange(lengths.shape[1], device=lengths.device) <= first
