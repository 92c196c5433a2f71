"""AbsTopK: the k latents of largest size per token, with their sign.

Zhu, Khalili, Zhu 2026, "AbsTopK: rethinking sparse autoencoders for bidirectional features". What
is followed and what is not is said in saelab/recipes/abs_topk.py.

    python -m trainers.abs_topk runs/acts runs/abs_topk --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.abs_topk import AbsTopKRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.abs_topk", paper_of(AbsTopKRecipe), AbsTopKRecipe, make_dictionary, argv
    )


if __name__ == "__main__":
    sys.exit(main())
