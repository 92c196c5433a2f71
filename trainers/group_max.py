"""GroupMax: the latents fall into k groups, and each token keeps the largest of each group.

    f_i = max(z_i, 0) if z_i is the largest of its group, else 0
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

EleutherAI 2025, "sparsify". Cheaper to select than TopK; two latents of one group never fire
together.

    python -m trainers.group_max runs/acts runs/group_max --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from saelab.activation_functions import GroupMax
from saelab.cli.programs import run_program
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes import Recipe, make_dictionary


@final
@dataclass(frozen=True, kw_only=True)
class GroupMaxRecipe(Recipe):
    """A GroupMax dictionary."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> GroupMax:
        """The largest of each of k groups."""
        return GroupMax(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.group_max", __doc__ or "", GroupMaxRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
