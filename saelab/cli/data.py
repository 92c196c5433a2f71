"""Verbs about activations: what a run will need (`plan`), and getting them (`harvest`)."""

import argparse
from pathlib import Path

from saelab import planning, tokens
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.verbs import Verb, add_model, add_text, opened_model, say, text_source
from saelab.files import format_bytes
from saelab.harvesting import HarvestConfig, harvest
from saelab.models import LanguageModel
from saelab.run_folders import HarvestSource
from saelab.tokens import Tokens
from saelab.training.config import TrainConfig

__all__ = ["HARVEST", "PLAN"]


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_text(parser)
    parser.add_argument(
        "--hook",
        action="append",
        required=True,
        metavar="NAME",
        help="hook point, such as blocks.15.hook_resid_post; repeatable",
    )
    parser.add_argument(
        "--length", type=int, default=128, help="tokens in a row, BOS included (default: 128)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=None, help="read no more of the text (default: all)"
    )


def _read_tokens(arguments: argparse.Namespace, model: LanguageModel) -> Tokens:
    with Working("Reading the text"):
        return tokens.from_text(
            model,
            text_source(arguments.text),
            length=arguments.length,
            max_tokens=arguments.max_tokens,
            # a prefix of a sorted corpus would be its oldest part
            seed=None if arguments.max_tokens is None else arguments.seed_of_text,
        )


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        help="share of the text, by document, kept for evaluation; 0 for none (default: 0.1)",
    )
    parser.add_argument(
        "--seed-of-text",
        type=int,
        default=0,
        help="which documents are read when --max-tokens is given, and held out (default: 0)",
    )


def _add_harvest(parser: argparse.ArgumentParser) -> None:
    _add_tokens(parser)
    _add_split(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument(
        "--append", action="store_true", help="add this text to a store that is finished"
    )
    add_flags(parser, HarvestConfig)


def _harvest(arguments: argparse.Namespace) -> None:
    config = from_flags(HarvestConfig, arguments)
    model = opened_model(arguments.model, arguments.device)
    text = _read_tokens(arguments, model)
    folder: Path = arguments.out
    held_out: Tokens | None = None
    if arguments.held_out > 0:
        text, held_out = text.split(arguments.held_out, arguments.seed_of_text)
    with ProgressBar("Harvesting") as bar:
        store = harvest(
            model,
            text,
            arguments.hook,
            folder,
            config=config,
            append=arguments.append,
            progress=bar,
        )
    if held_out is not None:
        held_out.save(folder / "tokens" / "held_out")
    HarvestSource.asked(arguments.model, text_source(arguments.text)).save(folder)
    hooks = ", ".join(f"{hook} ({width} wide)" for hook, width in store.widths.items())
    say(f"{folder}: {store.n_tokens:,} activations at {hooks}.")
    say(text.describe())
    if held_out is not None:
        say(f"Held out for evaluation: {held_out.describe()}")
    say(f"Next: saelab train {folder} --out RUN")


HARVEST = Verb(
    name="harvest",
    summary="Store a model's activations on a text; run it again to go on after an interruption.",
    example="saelab harvest --model smollm2 --text sotu --hook blocks.15.hook_resid_post "
    "--max-tokens 150000 --out runs/acts",
    add_flags=_add_harvest,
    run=_harvest,
)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_tokens(parser)
    _add_split(parser)
    parser.add_argument("--d-sae", type=int, default=4608, help="latents (default: 4608)")
    parser.add_argument("--k", type=int, default=32, help="latents per token (default: 32)")
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time a forward pass and two training steps (default: true)",
    )
    add_flags(parser, HarvestConfig)
    add_flags(parser, TrainConfig, skip=["seed"])  # harvesting has one too


def _plan(arguments: argparse.Namespace) -> None:
    harvesting = from_flags(HarvestConfig, arguments)
    training = from_flags(TrainConfig, arguments)
    model = opened_model(arguments.model, arguments.device)
    text = _read_tokens(arguments, model)
    if arguments.held_out > 0:
        text, _ = text.split(arguments.held_out, arguments.seed_of_text)
    with Working("Measuring"):
        made = planning.plan(
            model,
            text,
            arguments.hook,
            d_sae=arguments.d_sae,
            k=arguments.k,
            harvesting=harvesting,
            training=training,
            measure=arguments.measure,
        )
    say(f"Harvest {text.n_kept:,} tokens, train on {training.tokens:,}.")
    for line in made.lines():
        say(line)
    say(f"Free disk here: {format_bytes(planning.free_disk(Path.cwd()))}.")


PLAN = Verb(
    name="plan",
    summary="Say how much memory, disk and time a harvest and a training run will take.",
    example="saelab plan --hook blocks.15.hook_resid_post --max-tokens 150000 --d-sae 9216",
    add_flags=_add_plan,
    run=_plan,
)
