"""Skip transcoder: a transcoder with a linear path beside its latents.

Paulo, Shabalin, Belrose 2025, "Transcoders beat sparse autoencoders for interpretability". What is
followed and what is not is said in saelab/recipes/skip_transcoder.py.

    python -m trainers.skip_transcoder runs/acts runs/skip --k 32
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.skip_transcoder import SkipTranscoderRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.skip_transcoder",
        paper_of(SkipTranscoderRecipe),
        SkipTranscoderRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
