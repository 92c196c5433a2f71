"""Feature Choice: after a phase of Mutual Choice, every latent chooses its tokens.

Ayonrinde 2024, "Adaptive sparse allocation with Mutual Choice and Feature Choice sparse
autoencoders". What is followed and what is not is said in saelab/recipes/feature_choice.py.

    python -m trainers.feature_choice runs/acts runs/feature_choice --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.feature_choice import FeatureChoiceRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.feature_choice",
        paper_of(FeatureChoiceRecipe),
        FeatureChoiceRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
