"""top-AFA: each token keeps as many latents as make its code as long as its activation.

Lee, Davies, Canby, Hockenmaier 2025, "Evaluating and designing sparse autoencoders by approximating
quasi-orthogonality". What is followed and what is not is said in saelab/recipes/top_afa.py.

    python -m trainers.top_afa runs/acts runs/top_afa --d-sae 4608
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.top_afa import TopAFARecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.top_afa", paper_of(TopAFARecipe), TopAFARecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
