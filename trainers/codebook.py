"""Codebook: k codes are on for every token, all alike, and the activation is their mean.

Tamkin, Taufeeque and Goodman 2023, "Codebook features: sparse and discrete interpretability for
neural networks". What is followed and what is not is said in saelab/recipes/codebook.py.

    python -m trainers.codebook runs/acts runs/codebook --d-sae 4096 --k 8
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.codebook import CodebookRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.codebook",
        paper_of(CodebookRecipe),
        CodebookRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
