"""ReLU with an L1 penalty on latents, unit decoder directions, and dead latents resampled.

Bricken, Templeton, Batson, Chen, Jermyn, ..., Henighan, Olah 2023, "Towards monosemanticity:
decomposing language models with dictionary learning". What is followed and what is not is said in
saelab/recipes/relu_l1_2023.py.

    python -m trainers.relu_l1_2023 runs/acts runs/relu_l1_2023 --d-sae 4608 --l1 5
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.relu_l1_2023 import ReluResamplingRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.relu_l1_2023",
        paper_of(ReluResamplingRecipe),
        ReluResamplingRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
