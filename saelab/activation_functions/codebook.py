"""Which codes of a codebook stand for an activation? The k that point most its way, all alike."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions.base import require_latents
from saelab.activation_functions.coders import Coder
from saelab.errors import ConfigError
from saelab.kernels.encoding import Selected

__all__ = ["Codes"]


@final
class Codes(Coder):
    """The k codes of largest cosine with the activation are on, and nothing else is kept.

        f_i = 1 / k (or 1, where codes are summed) if i is among the k of largest
              d_i . (x - b_dec) / |d_i|, else 0

    So a reconstruction is b_dec plus the mean (or the sum) of k codes as they are, of any length:
    how much of a code there is in x is not said. A code is on even where its cosine is negative, as
    long as no other does better. Which codes are on has no gradient; the codes have.

    Args:
        k: Codes per token, at least 1.
        reduce: "mean" or "sum".

    Source: Tamkin, Taufeeque and Goodman 2023, "Codebook features": the abstract says sum, the
    authors' code divides by k. There a LayerNorm stands where b_dec is subtracted here.

    >>> from saelab.sae import SAE
    >>> sae = SAE(2, 4, Codes(2), tied=True)
    >>> sae.encode(torch.ones(1, 2)).values.tolist()
    [0.5, 0.5]
    """

    name = "codes"

    def __init__(self, k: int = 1, reduce: str = "mean") -> None:
        super().__init__(signed=False)
        if k < 1:
            raise ConfigError(f"Codes(k={k}) turns no code on; k must be at least 1.")
        if reduce not in ("mean", "sum"):
            raise ConfigError(f"Codes(reduce={reduce!r}) must be 'mean' or 'sum'.")
        self.k, self.reduce = k, reduce

    @property
    def target_l0(self) -> float:
        """k, always."""
        return float(self.k)

    @property
    def weight(self) -> float:
        """The value of a code that is on."""
        return 1 / self.k if self.reduce == "mean" else 1.0

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more codes than there are."""
        require_latents(self, self.k, d_sae)

    def scores(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """d_i . (x - b_dec) / |d_i|: the cosine, but for the length of x."""
        lengths = torch.linalg.vector_norm(self.attached(), dim=1)
        return pre_acts / lengths.clamp_min(1e-12)

    @torch.no_grad()
    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Row (ascending), code and its value; the value stands where a pre-activation would."""
        code = self.scores(pre_acts).topk(self.k, dim=1).indices.sort(dim=1).values
        row = torch.arange(len(pre_acts), device=pre_acts.device).repeat_interleave(self.k)
        return row, code.reshape(-1), pre_acts.new_full((len(row),), self.weight)

    def to_json(self) -> dict[str, Any]:
        """Name, k and how codes are joined."""
        return {"name": self.name, "k": self.k, "reduce": self.reduce}

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"k={self.k}, {self.reduce}"
