"""AbsTopK: the k latents of largest size per token, with their sign.

    f = z where |z| is among the k largest, else 0     z = W_enc (x - b_dec) + b_enc
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Zhu, Khalili, Zhu 2026, "AbsTopK: rethinking sparse autoencoders for bidirectional features". One
latent can stand for a concept and, negative, for its opposite, which TopK needs two latents for.
Different from the paper's code: selection is per token (trainers.batch_abs_topk shares the budget
over the batch, as the code does), and AuxK selects dead latents by size.

    python -m trainers.abs_topk runs/acts runs/abs_topk --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from saelab.activation_functions import AbsTopK
from saelab.cli.programs import run_program
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes import Recipe, make_dictionary


@final
@dataclass(frozen=True, kw_only=True)
class AbsTopKRecipe(Recipe):
    """An AbsTopK dictionary."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> AbsTopK:
        """The k of largest size."""
        return AbsTopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.abs_topk", __doc__ or "", AbsTopKRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
