"""Attention output: a dictionary that starts inside the subspace its activations use.

Kissane, Krzyzanowski, Bloom, Conmy, Nanda 2024, "Interpreting attention layer outputs with sparse
autoencoders". What is followed and what is not is said in saelab/recipes/attention_output.py.

    saelab harvest --hook blocks.15.attn.hook_z --out runs/acts
    python -m trainers.attention_output runs/acts runs/attention --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.attention_output import AttentionOutputRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.attention_output",
        paper_of(AttentionOutputRecipe),
        AttentionOutputRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
