"""The verb that makes a dictionary (`train`): the family's settings are flags, then the loop's."""

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import Verb, say
from saelab.distributed import Split, ranks
from saelab.recipes import families, make_dictionary, paper_of, recipe_of
from saelab.training import TrainResult
from saelab.training.config import TrainConfig

__all__ = ["TRAIN", "family_asked", "loop_settings"]

DEFAULT_FAMILY = "topk"


def family_asked(words: Sequence[str], default: str = DEFAULT_FAMILY) -> str:
    """What follows --family, read before the other flags are known.

    >>> family_asked(["runs/acts", "--family=relu"]), family_asked([])
    ('relu', 'topk')
    """
    for place, word in enumerate(words):
        if word.startswith("--family="):
            return word.partition("=")[2]
        if word == "--family" and place + 1 < len(words):
            return words[place + 1]
    return default


def loop_settings(arguments: argparse.Namespace, skip: Collection[str]) -> Mapping[str, Any]:
    """The fields of `TrainConfig` that were given, but for those a recipe has itself."""
    names = {field.name for field in dataclasses.fields(TrainConfig)} - set(skip)
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}


def _add_train(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    recipe = recipe_of(family_asked(words))
    parser.description = f"{parser.description}\n\n{paper_of(recipe)}"
    parser.add_argument("store", type=Path, help="folder of a finished harvest")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--family",
        default=DEFAULT_FAMILY,
        help=f"{', '.join(families())} (default: {DEFAULT_FAMILY}); each has flags of its own",
    )
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument(
        "--split",
        choices=get_args(Split),
        default="tokens",
        help="what the processes that torchrun starts divide among them (default: tokens)",
    )
    add_flags(parser, recipe)
    add_flags(parser, TrainConfig, skip=[field.name for field in dataclasses.fields(recipe)])


def _train(arguments: argparse.Namespace) -> None:
    kind = recipe_of(arguments.family)
    recipe = from_flags(kind, arguments)
    config = loop_settings(arguments, [field.name for field in dataclasses.fields(kind)])
    dataclasses.replace(recipe.training(), **config)  # refuse the impossible before reading
    run: Path = arguments.out
    with ranks(arguments.split) as together:
        first = together.rank == 0
        with ProgressBar("Training") as bar:
            result = make_dictionary(
                recipe,
                arguments.store,
                run,
                bar if first else None,
                config=config,
                device=arguments.device,
                ranks=together,
            )
    if first:
        _report(run, result)


def _report(run: Path, result: TrainResult) -> None:
    last = result.metrics[-1]
    say(f"{run}: {last['tokens']:,} tokens in {result.seconds:.0f} s.")
    say(
        f"On the last training batch: fvu {last['fvu']:.3f}, l0 {last['l0']:.1f}, "
        f"{last['dead_share']:.1%} of the latents dead."
    )
    for event in result.events:
        say(f"Note (step {event['step']}): {event['message']}")
    say(f"Next: saelab evaluate {run}")


TRAIN = Verb(
    name="train",
    summary="Train a dictionary on a store; run it again to go on after an interruption.",
    example="saelab train runs/acts --out runs/jumprelu --family jumprelu --d-sae 4608 --k 32\n"
    "  torchrun --nproc-per-node 2 --no-python saelab train runs/acts --out runs/topk --k 32",
    add_flags=lambda parser: _add_train(parser, ()),
    add_flags_for=_add_train,
    run=_train,
)
