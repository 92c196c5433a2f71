"""Do a few latents hold a concept and nothing else, and does another latent swallow a part of it?

    python -m probes.concept_removal runs/quickstart/topk --out runs/concept_removal

Three measurements on the model itself, each beside a control:

    tpp         headlines about four subjects: ablating a subject's latents should cost its own
                probe and no other; at most 0.5. Control: as many random latents that fire.
    scr         who is an actor, where the probe saw only male actors and others who are female:
                ablating latents of gender should undo that; 1 undoes all. The same control.
    absorption  first letters of words: a latent of the letter that stays silent because another
                carries the letter along. Read beside the F1 of the letters' own latents.

Karvonen et al. 2024, Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks; Chanin et
al. 2024, A is for Absorption. The texts are data sets of the package sae-probes (pip install
--no-deps sae-probes==0.4.2). Each finished measurement is a file in --out.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.errors import ConfigError, DataError
from saelab.files import read_json, write_json
from saelab.models import LanguageModel
from saelab.probing import (
    PooledTexts,
    divide,
    first_letter_activations,
    first_letter_words,
    load_data_set,
    measure_absorption,
    pooled_texts,
    spurious_removal,
    targeted_perturbation,
)
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.steering.contrasts import text_activations

SUBJECTS = ("headline_istrump", "headline_isobama", "headline_ischina", "headline_isiran")
WANTED, SPURIOUS = "wikidata_occupation_isactor", "wikidatasex_or_gender"
N_LATENTS = (2, 5, 10, 20, 50)
FORMAT, VERSION = "saelab-concept-removal", 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        sae, model = dictionary_of(asked.dictionary), None
        if sae.hook is None:
            raise ConfigError(f"{asked.dictionary} does not say which hook point it reads.")
        for name in asked.measure or list(MEASURES):
            path, settings = asked.out / f"{name}.json", settings_of(asked, name)
            if not path.is_file():
                model, started = model or opened_model(asked.model, asked.device), time.monotonic()
                found = MEASURES[name](model, sae, asked)
                found["seconds"] = round(time.monotonic() - started, 1)
                write_json(path, {**settings, **found})
            found = read_json(path, "a result of probes.concept_removal")
            if {key: found.get(key) for key in settings} != settings:
                raise ConfigError(f"{path} was made with other settings. Choose another --out.")
            for line in REPORTS[name](found):
                say(line)

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.concept_removal", description=__doc__)
    parser.add_argument("dictionary", type=Path, help="folder of a run or of a dictionary")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--measure", action="append", choices=list(MEASURES), help="(all)")
    parser.add_argument("--data-folder", type=Path, help="where sae-probes was unpacked")
    parser.add_argument("--texts", type=int, default=150, help="of each subject or cell (150)")
    parser.add_argument(
        "--max-length", type=int, default=40, help="last tokens of a text that are read (40)"
    )
    parser.add_argument("--words", type=int, default=1200, help="words for absorption (1,200)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    add_model(parser)
    return parser


def settings_of(asked: argparse.Namespace, name: str) -> dict[str, Any]:
    """Everything a result depends on."""
    known = ("model", "texts", "max_length", "words", "seed")
    settings = {one: getattr(asked, one) for one in known}
    settings |= {"dictionary": str(asked.dictionary), "measure": name}
    return {"format": FORMAT, "version": VERSION, "settings": settings}


def read(model: LanguageModel, sae: SAE, texts: Sequence[str], longest: int) -> PooledTexts:
    """The last tokens of every text, pooled with their latents."""
    parts, example = [], []
    short = [model.decode(model.encode(text)[-longest:]) for text in texts]
    with ProgressBar("Reading", unit="text") as bar:
        for start in range(0, len(short), 16):
            rows = text_activations(model, str(sae.hook), short[start : start + 16])
            parts += rows
            example += [torch.full((len(row),), start + i) for i, row in enumerate(rows)]
            bar(start + len(rows), len(short))
    return pooled_texts(sae, torch.cat(parts), torch.cat(example))


def measured_tpp(model: LanguageModel, sae: SAE, asked: argparse.Namespace) -> dict[str, Any]:
    """Targeted perturbation of the subjects."""
    texts: list[str] = []
    classes: list[int] = []
    seen: set[str] = set()
    for place, name in enumerate(SUBJECTS):
        data = load_data_set(name, asked.data_folder).sample(None, asked.seed)
        own = [text for text, yes in zip(data.texts, data.positive, strict=True) if yes]
        own = [text for text in own if text.casefold().strip() not in seen][: asked.texts]
        seen |= {text.casefold().strip() for text in own}
        texts += own
        classes += [place] * len(own)
    labels = np.array(classes)
    pooled = read(model, sae, texts, asked.max_length)
    found = targeted_perturbation(
        pooled, labels, divide(labels, seed=asked.seed), n_latents=N_LATENTS, seed=asked.seed
    )
    return {"n": len(texts), "rows": [plain(one) for one in found]}


def measured_scr(model: LanguageModel, sae: SAE, asked: argparse.Namespace) -> dict[str, Any]:
    """Spurious removal of gender from a probe of an occupation, and the other way round."""
    known = []
    for name in (WANTED, SPURIOUS):
        data = load_data_set(name, asked.data_folder)
        known.append(
            {
                text.casefold().strip(): (text, bool(yes))
                for text, yes in zip(data.texts, data.positive, strict=True)
            }
        )
    both = sorted(set(known[0]) & set(known[1]))
    texts = [known[0][key][0] for key in both]
    wanted, spurious = (np.array([one[key][1] for key in both]) for one in known)
    cells = 2 * wanted + spurious
    if len(texts) < 40 or len(np.unique(cells)) < 4:
        raise DataError(f"{WANTED} and {SPURIOUS} share only {len(texts)} texts: too few.")
    pooled, division = read(model, sae, texts, asked.max_length), divide(cells, seed=asked.seed)
    found = {
        f"{a} without {b}": [
            plain(row)
            for row in spurious_removal(
                pooled, one, other, division, n_latents=N_LATENTS, seed=asked.seed
            )
        ]
        for a, b, one, other in (
            ("actor", "gender", wanted, spurious),
            ("gender", "actor", spurious, wanted),
        )
    }
    return {"n": len(texts), "cells": np.bincount(cells).tolist(), "rows": found}


def measured_absorption(
    model: LanguageModel, sae: SAE, asked: argparse.Namespace
) -> dict[str, Any]:
    """First letters."""
    words = first_letter_words(model, asked.words, asked.seed)
    with ProgressBar("Reading words", unit="word") as bar:
        x = first_letter_activations(
            model, str(sae.hook), words, n_examples=2, seed=asked.seed, progress=bar
        )
    letters = [word[0] for word in words]
    found = measure_absorption(sae, x, letters, divide(np.array(letters), seed=asked.seed))
    control = np.random.default_rng(asked.seed).permutation(letters).tolist()
    shuffled = measure_absorption(sae, x, control, divide(np.array(control), seed=asked.seed))
    return {
        "n": len(words),
        "full": found.full,
        "part": found.part,
        "main_f1": found.main_f1,
        "n_classes": found.n_classes,
        "enough": found.enough,
        "shuffled_classes": shuffled.n_classes,
        "letters": [
            {"letter": one.name, "probe_f1": one.probe_f1, "main_f1": one.main_f1, "n": one.n,
             "main": list(one.main), "full": one.full, "part": one.part}
            for one in found.classes
        ],
    }  # fmt: skip


def plain(one: Any) -> dict[str, Any]:
    """A result as JSON can hold it."""
    row = asdict(one)
    ablated = row.pop("ablated")
    if isinstance(ablated, dict):
        return {**row, "ablated": {str(key): list(value) for key, value in ablated.items()}}
    return {**row, "ablated": list(ablated)}


def report_tpp(found: dict[str, Any]) -> list[str]:
    """A line per number of latents."""
    clean = found["rows"][0]["clean_accuracy"]
    lines = [f"TPP: {found['n']} headlines of four subjects; probes are right on {clean:.1%}",
             f"  {'latents':>7}{'TPP':>8}{'own probe':>11}{'others':>8}{'random':>8}"]  # fmt: skip
    for row in found["rows"]:
        lines.append(
            f"  {row['n_latents']:>7}{row['score']:>8.3f}{row['on_target']:>11.3f}"
            f"{row['on_others']:>8.3f}{row['random_score']:>8.3f}"
        )
    return lines


def report_scr(found: dict[str, Any]) -> list[str]:
    """A line per number of latents, each way."""
    lines = [f"SCR: {found['n']} texts about people; cells {found['cells']}"]
    for name, rows in found["rows"].items():
        first = rows[0]
        lines.append(f"  {name}: biased probe {first['biased']:.3f}, unbiased {first['clean']:.3f}")
        lines.append(f"  {'latents':>7}{'SCR':>8}{'accuracy':>10}{'random':>8}")
        for row in rows:
            lines.append(
                f"  {row['n_latents']:>7}{shown(row['score']):>8}{row['ablated_accuracy']:>10.3f}"
                f"{shown(row['random_score']):>8}"
            )
    return lines


def report_absorption(found: dict[str, Any]) -> list[str]:
    """The means, and the letters that are absorbed most."""
    worst = sorted(found["letters"], key=lambda one: -one["part"])[:5]
    named = ", ".join(f"{one['letter']} {one['part']:.0%}" for one in worst)
    doubt = "" if found["enough"] else " (fewer than 20: not to be trusted)"
    return [
        f"Absorption: {found['n']} words, {found['n_classes']} letters with a probe worth the name"
        f"{doubt}; with letters shuffled {found['shuffled_classes']}",
        f"  fully {found['full']:.1%}, in part {found['part']:.1%}; F1 of the letters' own latents "
        f"{found['main_f1']:.2f}; most: {named}",
    ]


def shown(value: float | None) -> str:
    """A number, or that there is none."""
    return "-" if value is None else f"{value:.3f}"


MEASURES: dict[str, Callable[[LanguageModel, SAE, argparse.Namespace], dict[str, Any]]] = {
    "tpp": measured_tpp,
    "scr": measured_scr,
    "absorption": measured_absorption,
}
REPORTS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "tpp": report_tpp,
    "scr": report_scr,
    "absorption": report_absorption,
}


if __name__ == "__main__":
    sys.exit(main())
