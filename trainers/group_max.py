"""GroupMax: the latents fall into k groups, and each token keeps the largest of each group.

EleutherAI 2025, "sparsify". What is followed and what is not is said in
saelab/recipes/group_max.py.

    python -m trainers.group_max runs/acts runs/group_max --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.group_max import GroupMaxRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.group_max",
        paper_of(GroupMaxRecipe),
        GroupMaxRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
