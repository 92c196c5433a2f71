"""JumpReLU with a smooth count: tanh of what each latent contributes.

Conerly, Cunningham, Templeton, Lindsey, Hosmer, Jermyn 2025, "Dictionary learning optimization
techniques". What is followed and what is not is said in saelab/recipes/jumprelu_tanh.py.

    python -m trainers.jumprelu_tanh runs/acts runs/jumprelu_tanh --d-sae 4608 --l0 2
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.jumprelu_tanh import TanhRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.jumprelu_tanh", paper_of(TanhRecipe), TanhRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
