"""Gated: one copy of the encoder decides which latents are active, another how strongly.

Rajamanoharan, Conmy, Smith, Lieberum, Varma, Kramar, Shah, Nanda 2024, "Improving dictionary
learning with gated sparse autoencoders". What is followed and what is not is said in
saelab/recipes/gated.py.

    python -m trainers.gated runs/acts runs/gated --d-sae 4608 --l1 5
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.gated import GatedRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.gated", paper_of(GatedRecipe), GatedRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
