"""Verbs about dictionaries: make one (`train`), measure it (`evaluate`), hand it on (`export`)."""

import argparse
from pathlib import Path

from saelab import tokens
from saelab.activation_functions import TopK
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.summary import evaluation_lines
from saelab.cli.verbs import Verb, add_text, opened_model, say, text_source
from saelab.errors import CheckpointError
from saelab.evaluation import EvaluateConfig, evaluate
from saelab.exporting import FORMATS, export
from saelab.run_folders import HarvestSource, dictionary_of, held_out_of, record_store, store_of
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.tokens import Tokens
from saelab.train_config import TrainConfig
from saelab.training import train

__all__ = ["EVALUATE", "EXPORT", "TRAIN"]


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path, help="folder of a finished harvest")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--hook", default=None, help="hook point, if the store has several")
    parser.add_argument("--d-sae", type=int, default=4608, help="latents (default: 4608)")
    parser.add_argument("--k", type=int, default=32, help="latents per token (default: 32)")
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    add_flags(parser, TrainConfig)


def _train(arguments: argparse.Namespace) -> None:
    config = from_flags(TrainConfig, arguments)
    store = ActivationStore.open(arguments.store, arguments.hook)
    sae = SAE(store.d_in, arguments.d_sae, TopK(arguments.k), hook=store.hook, seed=config.seed)
    run: Path = arguments.out
    with ProgressBar("Training") as bar:
        result = train(sae.to(arguments.device), store, config, run, progress=bar)
    record_store(run, arguments.store)
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
    summary="Train a TopK dictionary on a store; run it again to go on after an interruption.",
    example="saelab train runs/acts --out runs/topk --d-sae 4608 --k 32 --tokens 1_500_000",
    add_flags=_add_train,
    run=_train,
)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, or a dictionary's folder")
    parser.add_argument(
        "--model", default=None, help="the model to splice into (default: the harvest's)"
    )
    parser.add_argument("--device", default=None, help="where the model computes")
    add_text(parser, "the text the harvest held out")
    parser.add_argument(
        "--length", type=int, default=128, help="tokens in a row of --text (default: 128)"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="where the report goes (default: the run folder)"
    )
    add_flags(parser, EvaluateConfig)


def _evaluate(arguments: argparse.Namespace) -> None:
    config = from_flags(EvaluateConfig, arguments)
    sae = dictionary_of(arguments.run)
    model_source = arguments.model
    held_out: Tokens | None = None
    if model_source is None or arguments.text is None:
        store = _recorded_store(arguments.run)
        model_source = model_source or HarvestSource.of(store).model
        held_out = held_out_of(store) if arguments.text is None else None
    model = opened_model(model_source, arguments.device)
    if held_out is None:
        with Working("Reading the text"):
            held_out = tokens.from_text(model, text_source(arguments.text), length=arguments.length)
    with ProgressBar("Evaluating") as bar:
        report = evaluate(sae, model=model, tokens=held_out, config=config, progress=bar)
    page = report.save(arguments.out or arguments.run)
    for line in evaluation_lines(report):
        say(line)
    say(f"Report: {page}")


def _recorded_store(run: Path) -> Path:
    if not (run / "sources.json").exists():
        raise CheckpointError(
            f"{run} does not say which store it was trained on, so its model and held-out text "
            "are unknown. Give both: --model NAME --text SOURCE."
        )
    return store_of(run)


EVALUATE = Verb(
    name="evaluate",
    summary="Measure a dictionary on text it was not trained on, and write a report.",
    example="saelab evaluate runs/topk",
    add_flags=_add_evaluate,
    run=_evaluate,
)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, or a dictionary's folder")
    parser.add_argument(
        "--format", default="saelens", help=f"one of {', '.join(FORMATS)} (default: saelens)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported files")


def _export(arguments: argparse.Namespace) -> None:
    with Working("Exporting"):
        written = export(dictionary_of(arguments.run), arguments.out, arguments.format)
    say(f"{arguments.out}: {', '.join(path.name for path in written)}")


EXPORT = Verb(
    name="export",
    summary="Write a dictionary in another library's format.",
    example="saelab export runs/topk --format saelens --out runs/topk-saelens",
    add_flags=_add_export,
    run=_export,
)
