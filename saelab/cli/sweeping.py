"""Verbs about many dictionaries: train them together (`sweep`), and compare them (`pareto`)."""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from saelab.cli.flags import add_flags, field_docs, reader
from saelab.cli.progress import ProgressBar
from saelab.cli.training import DEFAULT_FAMILY, family_asked, loop_settings
from saelab.cli.verbs import Verb, say
from saelab.errors import ConfigError
from saelab.pareto import pareto
from saelab.pareto.page import save_pareto
from saelab.recipes import Recipe, families, recipe_of
from saelab.store import ActivationStore
from saelab.sweeps import Member, SweepResult, names_of, sweep
from saelab.training.config import TrainConfig

__all__ = ["PARETO", "SWEEP"]


def _kinds(families_asked: str) -> list[type[Recipe]]:
    return [recipe_of(name.strip()) for name in families_asked.split(",")]


def _fields(kinds: Sequence[type[Recipe]]) -> dict[str, type[Recipe]]:
    """Every field that a flag can list values of, and a recipe that has it."""
    return {
        field.name: kind
        for kind in reversed(kinds)
        for field in dataclasses.fields(kind)
        if get_origin(get_type_hints(kind)[field.name]) is not tuple
    }


def _add_sweep(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    kinds = _kinds(family_asked(words))
    parser.add_argument("store", type=Path, help="folder of a finished harvest")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--family",
        default=DEFAULT_FAMILY,
        metavar="NAME,...",
        help=f"of {', '.join(families())} (default: {DEFAULT_FAMILY})",
    )
    parser.add_argument(
        "--order",
        type=int,
        default=0,
        help="seed of the order of the data, which all share (default: 0)",
    )
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    group = parser.add_argument_group("values, separated by commas: every combination is trained")
    for name, kind in _fields(kinds).items():
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            metavar="VALUE,...",
            type=_words,
            help=field_docs(kind).get(name, "").replace("%", "%%"),
        )
    every = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    add_flags(parser, TrainConfig, skip=every | {"seed"})


def _words(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",")]


def _values(kind: type[Recipe], name: str, words: Sequence[str]) -> list[Any]:
    """The words as one family's field has them: k is whole in one and fractional in another."""
    read = reader(get_type_hints(kind)[name])
    try:
        return [read(word) for word in words]
    except ValueError as error:
        raise ConfigError(
            f"--{name.replace('_', '-')} {','.join(words)}: {error} is no "
            f"{getattr(read, '__name__', 'value')}, which {kind.__name__} needs."
        ) from None


def _recipes(arguments: argparse.Namespace) -> list[Recipe]:
    """Every combination of the values given, for each family."""
    recipes: list[Recipe] = []
    for kind in _kinds(arguments.family):
        own = [field.name for field in dataclasses.fields(kind)]
        given = {
            name: _values(kind, name, getattr(arguments, name))
            for name in own
            if name in vars(arguments)
        }
        recipes += [
            kind(**dict(zip(given, values, strict=True)))
            for values in itertools.product(*given.values())
        ]
    return list(dict.fromkeys(recipes))


def _sweep(arguments: argparse.Namespace) -> int:
    recipes = _recipes(arguments)
    every = {field.name for recipe in recipes for field in dataclasses.fields(recipe)}
    config = loop_settings(arguments, every)
    for recipe in recipes:  # refuse the impossible before reading
        dataclasses.replace(recipe.training(), **config)
    store = ActivationStore.open(arguments.store)
    members = [
        Member.of(recipe, store, name, order=arguments.order, config=config)
        for recipe, name in zip(recipes, names_of(recipes), strict=True)
    ]
    for member in members:
        member.sae.to(arguments.device)
    say(f"{len(members)} dictionaries, {sum(m.config.tokens for m in members):,} tokens in all.")
    with ProgressBar("Training") as bar:
        result = sweep(members, store, arguments.out, progress=bar)
    for line in _lines(result):
        say(line)
    say(f"Next: saelab evaluate {arguments.out}/NAME, and saelab pareto {arguments.out}")
    return 1 if result.failed else 0


def _lines(result: SweepResult) -> list[str]:
    width = max(map(len, [*result.results, *result.failed]))
    lines = [f"  {'':<{width}}  {'fvu':>6}  {'l0':>6}  {'dead':>6}  (last training batch)"]
    for name, one in result.results.items():
        last = one.metrics[-1]
        numbers = f"{last['fvu']:6.3f}  {last['l0']:6.1f}  {last['dead_share']:6.1%}"
        lines.append(f"  {name:<{width}}  {numbers}")
    return lines + [f"  {name:<{width}}  failed: {why}" for name, why in result.failed.items()]


SWEEP = Verb(
    name="sweep",
    summary="Train several dictionaries in one pass over a store; run it again to go on.",
    example="saelab sweep runs/acts --out runs/sweep --family topk,batch_topk --k 16,32,64 "
    "--seed 0,1,2",
    add_flags=lambda parser: _add_sweep(parser, ()),
    add_flags_for=_add_sweep,
    run=_sweep,
)


def _add_pareto(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="+", help="sweeps, run folders, or folders of them"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="where the page goes (default: the first folder)"
    )


def _pareto(arguments: argparse.Namespace) -> None:
    for folder in arguments.folder:
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder} to read runs from.")
    found = pareto(arguments.folder)
    page = save_pareto(found, arguments.out or arguments.folder[0])
    say(f"{len(found.points)} runs; on the frontier of L0 and FVU:")
    for one in sorted(found.frontier, key=lambda point: point.l0):
        say(f"  l0 {one.l0:7.1f}  fvu {one.fvu:.4f}  {one.run}")
    say(f"Page: {page}")


PARETO = Verb(
    name="pareto",
    summary="Compare runs at the same sparsity, on a page that opens without a server.",
    example="saelab pareto runs/sweep",
    add_flags=_add_pareto,
    run=_pareto,
)
