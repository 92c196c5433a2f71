"""TopK: exactly k latents per token, and dead latents revived by what the others miss.

Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu 2024, "Scaling and evaluating
sparse autoencoders". What is followed and what is not is said in saelab/recipes/topk.py.

    python -m trainers.topk runs/acts runs/topk --d-sae 9216 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.topk import TopKRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.topk", paper_of(TopKRecipe), TopKRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
