"""How does a recipe become a program? Its dataclass gives the flags, its function does the work."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from saelab.cli.flags import Parser, add_flags, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import say
from saelab.training import TrainResult

__all__ = ["run_program"]

Recipe = TypeVar("Recipe")


def run_program(
    name: str,
    text: str,
    recipe: type[Recipe],
    make: Callable[[Recipe, Path, Path, ProgressBar], TrainResult],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `STORE OUT [flags]`, make the dictionary, and say how it went.

    Args:
        name: What is typed to run the program.
        text: Its description: the module's docstring.
        recipe: A frozen dataclass; each field is a flag.
        make: Called with the recipe, the store's folder, the run's folder and a progress bar.
        argv: The words after the name; those of the process if not given.

    Returns:
        The exit status.
    """

    def work() -> None:
        parser = Parser(prog=name, description=text)
        parser.add_argument("store", type=Path, help="folder of a finished harvest")
        parser.add_argument("out", type=Path, help="folder of the run")
        add_flags(parser, recipe)
        arguments: argparse.Namespace = parse(parser, argv)
        asked = from_flags(recipe, arguments)
        with ProgressBar("Training") as bar:
            result = make(asked, arguments.store, arguments.out, bar)
        last = result.metrics[-1]
        say(
            f"{arguments.out}: {last['tokens']:,} tokens in {result.seconds:.0f} s; on the last "
            f"batch fvu {last['fvu']:.3f}, l0 {last['l0']:.1f}, {last['dead_share']:.1%} dead."
        )
        say(f"Next: saelab evaluate {arguments.out}")

    return run(work)
