"""Mutual Choice: tokens and latents choose each other, k active latents per token on average.

Ayonrinde 2024, "Adaptive sparse allocation with Mutual Choice and Feature Choice sparse
autoencoders". What is followed and what is not is said in saelab/recipes/mutual_choice.py.

    python -m trainers.mutual_choice runs/acts runs/mutual_choice --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.mutual_choice import MutualChoiceRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.mutual_choice",
        paper_of(MutualChoiceRecipe),
        MutualChoiceRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
