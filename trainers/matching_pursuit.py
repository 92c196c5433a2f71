"""Matching pursuit: latents are chosen one at a time, each by what the ones before left over.

Costa, Fel, Lubana, Tolooshams, Ba 2025, "From flat to hierarchical: extracting sparse
representations with matching pursuit". What is followed and what is not is said in
saelab/recipes/matching_pursuit.py.

    python -m trainers.matching_pursuit runs/acts runs/mp --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.matching_pursuit import MatchingPursuitRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.matching_pursuit",
        paper_of(MatchingPursuitRecipe),
        MatchingPursuitRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
