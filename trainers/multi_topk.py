"""Multi-TopK: TopK that also reconstructs well from 4 k latents.

    loss = |x - x_hat_k|^2 / variance + 1/8 |x - x_hat_4k|^2 / variance + 1/32 AuxK

Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu 2024, "Scaling and evaluating
sparse autoencoders", section 5. Plain TopK overfits its k: read with more latents it gets worse.

    python -m trainers.multi_topk runs/acts runs/multi_topk --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from saelab.activation_functions import TopK
from saelab.cli.programs import run_program
from saelab.objectives import AuxK, MultiTopK, Reconstruction
from saelab.recipes import Recipe, make_dictionary


@final
@dataclass(frozen=True, kw_only=True)
class MultiTopKRecipe(Recipe):
    """A TopK dictionary that can be read with more latents than it was trained for."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> TopK:
        """The k largest."""
        return TopK(self.k)

    def terms(self) -> tuple[Reconstruction, MultiTopK, AuxK]:
        """Squared error at k and at 4 k, and AuxK."""
        return Reconstruction(), MultiTopK(), AuxK(coefficient=self.auxk)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.multi_topk", __doc__ or "", MultiTopKRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
