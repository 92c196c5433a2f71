"""JumpReLU: every latent learns the threshold above which it counts.

Rajamanoharan, Lieberum, Sonnerat, Conmy, Varma, Kramar, Nanda 2024, "Jumping ahead: improving
reconstruction fidelity with JumpReLU sparse autoencoders". What is followed and what is not is said
in saelab/recipes/jumprelu.py.

    python -m trainers.jumprelu runs/acts runs/jumprelu --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.jumprelu import JumpReLURecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.jumprelu",
        paper_of(JumpReLURecipe),
        JumpReLURecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
