"""ReLU with an L1 penalty on what latents contribute, and decoder directions of any length.

Conerly, Templeton, Bricken, Marcus, Henighan 2024, "Update on how we train SAEs". What is followed
and what is not is said in saelab/recipes/relu_l1_april2024.py.

    python -m trainers.relu_l1_april2024 runs/acts runs/relu_l1 --d-sae 4608 --l1 5
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.relu_l1_april2024 import ReluL1Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.relu_l1_april2024",
        paper_of(ReluL1Recipe),
        ReluL1Recipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
