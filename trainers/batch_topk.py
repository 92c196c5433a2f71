"""BatchTopK: k latents per token on average, more on hard tokens and fewer on easy ones.

Bussmann, Leask, Nanda 2024, "BatchTopK sparse autoencoders". What is followed and what is not is
said in saelab/recipes/batch_topk.py.

    python -m trainers.batch_topk runs/acts runs/batch_topk --d-sae 4608 --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.batch_topk import BatchTopKRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.batch_topk",
        paper_of(BatchTopKRecipe),
        BatchTopKRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
