"""p-annealing: an L1 penalty whose power falls from 1 towards 0 during the run.

Karvonen, Wright, Rager, Angell, Brinkmann, Smith, Verdun, Bau, Marks 2024, "Measuring progress in
dictionary learning for language model interpretability with board game models". What is followed
and what is not is said in saelab/recipes/p_annealing.py.

    python -m trainers.p_annealing runs/acts runs/p_annealing --d-sae 4608 --l1 5 --p-end 0.2
"""

import sys
from collections.abc import Sequence

from saelab.cli.programs import run_program
from saelab.recipes import make_dictionary, paper_of
from saelab.recipes.p_annealing import PAnnealingRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program(
        "python -m trainers.p_annealing",
        paper_of(PAnnealingRecipe),
        PAnnealingRecipe,
        make_dictionary,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
