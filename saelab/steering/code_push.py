"""How is a model pushed with a whole code at once? A vector over latents, added to each token's.

    h + D (g(f + m v) - f),   f = encode(h), D the decoder directions in the model's units

g keeps the sum a code: `relu` drops what falls below zero, for dictionaries of nonnegative
latents; `select` applies the dictionary's own activation function again, which also keeps a code
of a signed dictionary sparse; `none` changes nothing, and the push is then m D v wherever one is.
With v = 0 nothing changes under `none`, and under the others wherever f is a code of its own.
"""

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.sae import SAE
from saelab.steering.interventions import DictionaryEdit

__all__ = ["KEEP", "PushCode", "check_keep", "keep_code"]

KEEP = ("relu", "select", "none")
"""What may be done to the pushed code."""


@final
@dataclass(frozen=True, eq=False)
class PushCode(DictionaryEdit):
    """Add a vector over latents to the code of every token; the error stays.

    Source: the code of YaPO (MBZUAI-Paris/YaPO); with `relu`, its steering function.
    """

    sae: SAE
    vector: Float[Tensor, " d_sae"]
    """One number per latent, in its own units."""
    strength: float = 1.0
    """m; negative pushes the other way, but `relu` lets no inactive latent follow below zero."""
    keep: str = "relu"
    """g: "relu", "select" or "none"."""

    kind = "push_code"

    def __post_init__(self) -> None:
        if self.vector.shape != (self.sae.d_sae,):
            raise ConfigError(
                f"A push of codes needs one number per latent, [{self.sae.d_sae}]; found "
                f"{list(self.vector.shape)}."
            )
        check_keep(self.sae, self.keep)

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """h + D (g(f + m v) - f)."""
        own = self.sae.encode(read).dense().float()
        pushed = keep_code(self.sae, own + self.strength * self.vector.to(own.device), self.keep)
        directions = self.sae.W_dec.detach().float() / self.sae.normalization.scale_out
        amount = (pushed - own) @ directions
        return (written.float() + amount.to(written.device)).to(written.dtype)

    def to_json(self) -> dict[str, Any]:
        """Kind, strength and g; the vector is kept beside."""
        return {"kind": self.kind, "strength": float(self.strength), "keep": self.keep}

    def support(self, tolerance: float = 0.0) -> int:
        """Latents whose number is beyond the tolerance."""
        return int((self.vector.abs() > tolerance).sum())


def check_keep(sae: SAE, keep: str) -> None:
    """Refuse a g that is unknown, or that does not suit the dictionary.

    Raises:
        ConfigError: It is none of `KEEP`, or would drop half of every signed latent.
    """
    if keep not in KEEP:
        raise ConfigError(f"keep={keep!r} is none of {', '.join(KEEP)}.")
    if keep == "relu" and sae.activation.signed:
        raise ConfigError(
            "keep='relu' would drop the negative latents of a signed dictionary. Use 'select'."
        )


def keep_code(
    sae: SAE, code: Float[Tensor, "token d_sae"], keep: str
) -> Float[Tensor, "token d_sae"]:
    """g: what makes a changed code a code of the dictionary again; see the module."""
    if keep == "relu":
        return code.relu()
    return sae.activation(code) if keep == "select" else code
