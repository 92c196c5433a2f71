"""Matryoshka BatchTopK: nested dictionaries, the general latents first.

Bussmann, Nabeshima, Karvonen, Nanda 2025, "Learning multi-level features with Matryoshka sparse
autoencoders". What is followed and what is not is said in saelab/recipes/matryoshka.py.

    python -m trainers.matryoshka runs/acts runs/matryoshka --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.matryoshka import MatryoshkaRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.matryoshka",
        paper_of(MatryoshkaRecipe),
        MatryoshkaRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
