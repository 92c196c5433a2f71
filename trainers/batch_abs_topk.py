"""BatchAbsTopK: signed latents with a budget shared over the batch.

Zhu, Khalili, Zhu 2026, "AbsTopK: rethinking sparse autoencoders for bidirectional features". What
is followed and what is not is said in saelab/recipes/batch_abs_topk.py.

    python -m trainers.batch_abs_topk runs/acts runs/batch_abs_topk --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.batch_abs_topk import SignedBudgetRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.batch_abs_topk",
        paper_of(SignedBudgetRecipe),
        SignedBudgetRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
