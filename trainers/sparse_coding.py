"""Sparse coding: latents minimize the squared error plus a price, the dictionary follows.

Olshausen and Field 1996, "Emergence of simple-cell receptive field properties by learning a sparse
code for natural images"; Rentzeperis, Calatroni, Perrinet and Prandi 2023, "Beyond l1 sparse coding
in V1", for the penalties. What is followed and what is not is said in
saelab/recipes/sparse_coding.py.

    python -m trainers.sparse_coding runs/acts runs/sparse --penalty hard --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.sparse_coding import SparseCodingRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.sparse_coding",
        paper_of(SparseCodingRecipe),
        SparseCodingRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
