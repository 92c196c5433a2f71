"""Do latents hold concepts in fewer columns than neurons or the activations themselves?

    python -m probes.sparse_probing runs/quickstart/topk --out runs/sparse_probing

Labeled texts are run through the model once; probes of k columns are fitted to the activations
where the dictionary reads, to the neurons of the same block and to the latents, on the same
division of the same texts, with their controls: shuffled labels, random directions, the majority.
Compare AUROCs at one k with care: the more columns there are, the better the best k of them are by
choice alone, so the width is printed too, and the selection is repeated on shuffled labels.

The data sets are those of Kantamneni et al. 2025, Are Sparse Autoencoders Useful?, from the package
sae-probes (pip install --no-deps sae-probes==0.4.2), or CSV files with columns prompt and target.
Each finished data set is a file in --out; the same command continues where it was stopped.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.errors import ConfigError, DataError
from saelab.files import read_json, write_json
from saelab.models import LanguageModel
from saelab.probing import (
    LabeledTexts,
    Method,
    Pooling,
    ProbeConfig,
    ProbeReport,
    divide,
    load_data_set,
    read_examples,
    read_labeled_csv,
    sparse_probe,
)
from saelab.run_folders import dictionary_of
from saelab.sae import SAE

DATA = (
    "glue_sst2",
    "headline_istrump",
    "news_class_Politics",
    "code_Python",
    "wikidatais_alive",
    "spam_is",
    "movie_sent",
    "click_bait",
    "hist_fig_ismale",
    "athlete_sport_football",
    "art_type_movie",
    "high-school",
)
"""Language, topics, entities, style and a word pair; `agnews_*` are left out (docs/probing.md)."""
FORMAT = "saelab-sparse-probing"
VERSION = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        sae = dictionary_of(asked.dictionary)
        if sae.hook is None:
            raise ConfigError(f"{asked.dictionary} does not say which hook point it reads.")
        settings = settings_of(asked)
        names = asked.data or list(DATA)
        done = {name: finished(asked.out, name, settings) for name in names}
        model = None
        for name in names:
            if done[name] is None:
                model = model or opened_model(asked.model, asked.device)
                found = measured(model, sae, opened(name, asked), asked)
                write_json(place(asked.out, name), {**settings, **found})
                done[name] = found
        results = [done[name] for name in names]
        for line in table(results):
            say(line)

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.sparse_probing", description=__doc__)
    parser.add_argument("dictionary", type=Path, help="folder of a run or of a dictionary")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--data", action="append", metavar="NAME", help="a data set or a .csv file; repeatable"
    )
    parser.add_argument("--data-folder", type=Path, help="where sae-probes was unpacked")
    parser.add_argument("--k", type=int, action="append", help="columns; repeatable (1, 4, 16)")
    parser.add_argument("--texts", type=int, default=600, help="of each data set, at most (600)")
    parser.add_argument(
        "--max-length", type=int, default=64, help="last tokens of a text that are read (64)"
    )
    parser.add_argument(
        "--pooling", choices=get_args(Pooling), default="mean", help="of tokens (mean)"
    )
    parser.add_argument(
        "--method", choices=get_args(Method), default="mean_difference", help="choice of columns"
    )
    parser.add_argument("--controls", type=int, default=3, help="shuffles and projections (3)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    add_model(parser)
    return parser


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything a result depends on."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": {
            "dictionary": str(asked.dictionary),
            "model": asked.model,
            "k": asked.k or [1, 4, 16],
            "texts": asked.texts,
            "max_length": asked.max_length,
            "pooling": asked.pooling,
            "method": asked.method,
            "controls": asked.controls,
            "seed": asked.seed,
        },
    }


def place(out: Path, name: str) -> Path:
    """The file of a data set."""
    return out / f"{Path(name).name.removesuffix('.zst').removesuffix('.csv')}.json"


def finished(out: Path, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A data set's result if it is there, and was made with the same settings."""
    path = place(out, name)
    if not path.is_file():
        return None
    found = read_json(path, "a result of probes.sparse_probing")
    if {key: found.get(key) for key in settings} != settings:
        raise ConfigError(f"{path} was made with other settings. Choose another --out.")
    return found


def opened(name: str, asked: argparse.Namespace) -> LabeledTexts:
    """A data set by name, or a CSV file."""
    if name.endswith((".csv", ".csv.zst")):
        return read_labeled_csv(name).sample(asked.texts, asked.seed)
    return load_data_set(name, asked.data_folder).sample(asked.texts, asked.seed)


def measured(
    model: LanguageModel, sae: SAE, data: LabeledTexts, asked: argparse.Namespace
) -> dict[str, Any]:
    """Read one data set and probe it at every place."""
    started, hook = time.monotonic(), sae.hook or ""
    layer = model.hook_point(hook).layer
    if layer is None:
        raise ConfigError(f"{hook} is in no block, so there are no neurons to compare with.")
    neurons = f"blocks.{layer}.mlp.hook_post"
    with ProgressBar(f"Reading {data.name}", unit="text") as bar:
        # max and mean would mix the tails of signed latents: they are pooled apart
        halves = asked.pooling in ("mean", "max") and sae_is_signed(sae)
        found = read_examples(
            model, data.texts, [hook, neurons], asked.pooling,
            sae=sae, halves=halves, max_length=asked.max_length, progress=bar,
        )  # fmt: skip
    positive = data.positive[found.rows]
    if min(positive.sum(), (~positive).sum()) < 20:
        raise DataError(f"{data.name} has {positive.sum()} positive and {(~positive).sum()} "
                        "negative texts left; 20 of each are needed.")  # fmt: skip
    division = divide(positive, seed=asked.seed)
    places = {
        "activations": found.activations[hook],
        "neurons": found.activations[neurons],
        "latents": found.latents,
    }
    config = ProbeConfig(
        method=asked.method, strengths=(0.01, 0.1, 1.0), n_folds=3,
        n_controls=asked.controls, seed=asked.seed,
    )  # fmt: skip
    ks = asked.k or [1, 4, 16]
    rows = []
    with ProgressBar(f"Probing {data.name}", unit="probe") as bar:
        for source, values in places.items():
            for k in [*ks, None]:
                report = sparse_probe(values, positive, k, division, config=config)
                rows.append({"source": source, **row_of(report, k)})
                bar(len(rows), len(places) * (len(ks) + 1), source)
    return {
        "data": data.name,
        "labels": list(data.labels),
        "n_train": len(division.train),
        "n_test": len(division.test),
        "n_tokens": found.n_tokens,
        "n_repeated": data.n_repeated,
        "n_contradicting": data.n_contradicting,
        "seconds": round(time.monotonic() - started, 1),
        "rows": rows,
    }


def sae_is_signed(sae: SAE) -> bool:
    """Whether latents can be negative."""
    return bool(getattr(sae.activation, "signed", False))


def row_of(report: ProbeReport, k: int | None) -> dict[str, Any]:
    """One probe as JSON can hold it."""
    return {
        "k": k,
        "width": report.width,
        "auroc": report.test.auroc,
        "low": report.interval.low,
        "high": report.interval.high,
        "f1": report.test.f1,
        "shuffled": float(np.mean(report.controls.shuffled)),
        "random": float(np.mean(report.controls.random)) if report.controls.random else None,
        "majority_accuracy": report.controls.majority_accuracy,
        "majority_f1": report.controls.majority_f1,
        "columns": report.probe.columns.tolist() if k is not None else None,
    }


def table(results: Sequence[dict[str, Any] | None]) -> list[str]:
    """One line a probe, then the means over data sets."""
    found = [one for one in results if one is not None]
    lines = [
        f"{'data set':22}{'read':13}{'k':>5}{'width':>7}{'AUROC':>8}  {'95 % interval':15}"
        f"{'F1':>6}{'shuffled':>10}{'random':>8}{'majority F1':>13}"
    ]
    for one in found:
        for row in one["rows"]:
            lines.append(f"{one['data'][:21]:22}{line(row)}")
    keys = [(row["source"], row["k"]) for row in found[0]["rows"]]
    for place_in_table, _ in enumerate(keys):
        rows = [one["rows"][place_in_table] for one in found]
        lines.append(f"{f'mean of {len(found)}':22}{line(mean_of(rows))}")
    texts = ", ".join(f"{one['data']} {one['n_train']} + {one['n_test']}" for one in found)
    lines.append(f"Texts (training + test): {texts}. Repeated and contradicting texts left out.")
    return lines


def line(row: dict[str, Any]) -> str:
    """A table row after its first column."""
    k = "all" if row["k"] is None else row["k"]
    random = "-" if row["random"] is None else f"{row['random']:.3f}"
    between = f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else "-"
    return (
        f"{row['source']:13}{k:>5}{row['width']:>7}{row['auroc']:>8.3f}  {between:15}"
        f"{row['f1']:>6.3f}{row['shuffled']:>10.3f}{random:>8}{row['majority_f1']:>13.3f}"
    )


def mean_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over data sets; an interval of a mean over data sets is not claimed."""
    mean = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("auroc", "f1", "shuffled", "majority_f1")
    }
    random = [row["random"] for row in rows if row["random"] is not None]
    first = {name: rows[0][name] for name in ("source", "k", "width")}
    return {**first, **mean, "random": float(np.mean(random)) if random else None}


if __name__ == "__main__":
    sys.exit(main())
