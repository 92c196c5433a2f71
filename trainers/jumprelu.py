"""JumpReLU: every latent learns the threshold above which it counts.

    f = z where z > threshold, else 0                  z = W_enc (x - b_dec) + b_enc
    loss = |x - x_hat|^2 / variance + (L0 / target - 1)^2 + pressure (L0 / target - 1)

Rajamanoharan, Lieberum, Sonnerat, Conmy, Varma, Kramar, Nanda 2024, "Jumping ahead: improving
reconstruction fidelity with JumpReLU sparse autoencoders", with the target in place of a penalty
and a pressure that grows until it is met. Different: b_dec is subtracted from the input, Adam keeps
its usual momentum, and the window is
wider than the paper's, whose budget is a thousand times larger.

    python -m trainers.jumprelu runs/acts runs/jumprelu --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from saelab.activation_functions import JumpReLU
from saelab.cli.programs import run_program
from saelab.objectives import Reconstruction, TargetL0
from saelab.recipes import Recipe, make_dictionary


@final
@dataclass(frozen=True, kw_only=True)
class JumpReLURecipe(Recipe):
    """A JumpReLU dictionary with a target L0."""

    k: float = 32.0
    """Active latents per token aimed at, on average."""
    bandwidth: float | None = None
    """Width of the window around a threshold; None for 0.04 sqrt(d_in)."""

    def activation(self) -> JumpReLU:
        """Those above the threshold that each latent learns."""
        return JumpReLU(bandwidth=self.bandwidth)

    def terms(self) -> tuple[Reconstruction, TargetL0]:
        """Squared error, and the distance of L0 from its target."""
        return Reconstruction(), TargetL0(target=self.k)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.jumprelu", __doc__ or "", JumpReLURecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
