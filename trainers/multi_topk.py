"""Multi-TopK: TopK that also reconstructs well from 4 k latents.

Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu 2024, "Scaling and evaluating
sparse autoencoders". What is followed and what is not is said in saelab/recipes/multi_topk.py.

    python -m trainers.multi_topk runs/acts runs/multi_topk --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.multi_topk import MultiTopKRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.multi_topk",
        paper_of(MultiTopKRecipe),
        MultiTopKRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
