"""Gradient SAE: TopK that prefers latents the language model's loss depends on.

Olmo, Wilson, Forsey, Hepner, Howe, Wingate 2024, "Features that make a difference: leveraging
gradients for improved dictionary learning". What is followed and what is not is said in
saelab/recipes/gradient_sae.py.

    python -m trainers.gradient_sae runs/acts runs/gradient_sae --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.gradient_sae import GradientSAERecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.gradient_sae",
        paper_of(GradientSAERecipe),
        GradientSAERecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
