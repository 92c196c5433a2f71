"""Transcoder: latents that read what an MLP reads and write what it writes.

Dunefsky, Chlenski, Nanda 2024, "Transcoders find interpretable LLM feature circuits". What is
followed and what is not is said in saelab/recipes/transcoder.py. The store holds both ends:

    saelab harvest --hook blocks.15.mlp.hook_in --hook blocks.15.hook_mlp_out --out runs/acts
    python -m trainers.transcoder runs/acts runs/transcoder --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.transcoder import TranscoderRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.transcoder",
        paper_of(TranscoderRecipe),
        TranscoderRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
