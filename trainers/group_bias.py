"""Group Bias Adaptation: biases are set by how often latents fire, not by a gradient.

Chen, Sheen, Xiong, Wang, Yang 2025, "Taming polysemanticity in LLMs: provable feature recovery via
sparse autoencoders". What is followed and what is not is said in saelab/recipes/group_bias.py.

    python -m trainers.group_bias runs/acts runs/group_bias --d-sae 4608
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.group_bias import GroupBiasRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.group_bias",
        paper_of(GroupBiasRecipe),
        GroupBiasRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
