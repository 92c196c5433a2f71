"""What does the model do with a code it did not choose? Some of a token's codes, replaced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import Codes
from saelab.errors import ConfigError
from saelab.sae import SAE
from saelab.steering.interventions import DictionaryEdit

__all__ = ["NOTHING", "ForceCodes", "codes_of"]

NOTHING = -1
"""In place of a code: that place stays empty, and the others keep their weight."""


@final
@dataclass(frozen=True, eq=False)
class ForceCodes(DictionaryEdit):
    """Replace a token's best codes by given ones.

        r = b_dec + weight * (sum of the given codes + sum of the k - n best that are left)

    Of the k codes that are on, the n that point most the activation's way give their places to the
    n given ones, at the same weight. What is put in the activation's place is the reconstruction,
    as in a model that runs on codes; `keep_error` adds what the token's own codes had missed, for
    a model that was never trained to run on codes alone.

    Source: Tamkin, Taufeeque and Goodman 2023, and their code, where -1 is an empty place too.
    """

    sae: SAE
    codes: Sequence[int]
    """The codes to turn on, at most k; NOTHING (-1) empties a place."""
    keep_error: bool = False
    """Whether h - r of the token's own codes is added."""

    kind = "force_codes"

    def __post_init__(self) -> None:
        rule = codes_of(self.sae)
        if not 1 <= len(self.codes) <= rule.k:
            raise ConfigError(
                f"{len(self.codes)} codes were given; the codebook turns {rule.k} on, so 1 to "
                f"{rule.k} can be replaced."
            )
        wrong = [code for code in self.codes if not NOTHING <= code < self.sae.d_sae]
        if wrong:
            raise ConfigError(
                f"There is no code {wrong[0]}: codes run from 0 to {self.sae.d_sae - 1}, and "
                f"{NOTHING} stands for none."
            )

    @torch.no_grad()
    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """The reconstruction of the replaced codes."""
        sae, rule = self.sae, codes_of(self.sae)
        scores = rule.scores(sae.pre_activations(read.to(sae.device, sae.dtype)))
        own = scores.topk(rule.k, dim=1).indices
        given = torch.tensor(list(self.codes), device=own.device).expand(len(own), -1)
        changed = torch.cat([given, own[:, len(self.codes) :]], dim=1)
        out = self._decoded(changed)
        if self.keep_error:
            out = out + (written.to(out) - self._decoded(own))
        return out.to(written.device, written.dtype)

    def to_json(self) -> dict[str, Any]:
        """Kind, codes and whether the error is kept."""
        codes = [int(code) for code in self.codes]
        return {"kind": self.kind, "codes": codes, "keep_error": self.keep_error}

    def _decoded(self, codes: Tensor) -> Float[Tensor, "token d"]:
        sae = self.sae
        rows = sae.W_dec.detach()[codes.clamp_min(0)] * (codes != NOTHING)[..., None]
        recons = codes_of(sae).weight * rows.sum(1) + sae.b_dec.detach()
        return recons / sae.normalization.scale_out


def codes_of(codebook: SAE) -> Codes:
    """The activation function of a codebook.

    Raises:
        ConfigError: The dictionary is no codebook.
    """
    if not isinstance(codebook.activation, Codes):
        raise ConfigError(
            f"A codebook has the activation function Codes; this dictionary has "
            f"{codebook.activation}. Make one with codebook_for() or trainers.codebook."
        )
    return codebook.activation
