"""The verb that measures a dictionary (`evaluate`)."""

import argparse
from pathlib import Path

from saelab import tokens
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.summary import evaluation_lines
from saelab.cli.verbs import Verb, add_text, opened_model, say, text_source
from saelab.errors import CheckpointError
from saelab.evaluation import EvaluateConfig, evaluate
from saelab.run_folders import HarvestSource, dictionary_of, held_out_of, store_of
from saelab.tokens import Tokens

__all__ = ["EVALUATE"]


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
