"""How far is a dictionary from one that was told the attributes? Three tests on a known task.

    python -m probes.ioi_yardstick runs/quickstart/topk --out runs/yardstick

Prompts of indirect object identification ("When Mary and John went to the store, John gave a drink
to") have three attributes: IO, S and their order. A supervised dictionary has a vector per value of
each, fitted on one half of the prompts (mean, or least squares: mse); the dictionary, and one with
random directions, stand beside it on the other half. At each position, as in Makelov, Lange and
Nanda 2024, Towards Principled Evaluations of Sparse Autoencoders:

    approximation    logit difference IO - S with the reconstruction in place (sufficiency), and
                     with only what it leaves (necessity); 1 is best in both
    control          share of prompts that answer as with the other prompt's activation, after k
                     latents were given its values; beside it, doing nothing
    interpretation   latents that stand for a value or a union of values with F1 of 0.5 and more,
                     and the share of names that have one

Each finished position is a file in --out; the same command continues where it was stopped.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.verbs import add_model, opened_model, say
from saelab.errors import ConfigError
from saelab.files import read_json, write_json
from saelab.models import LanguageModel
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.yardstick import (
    IoiPrompts,
    agreement,
    approximate,
    counterfactual,
    fit_supervised,
    greedy_edit,
    ioi_prompts,
    matched_values,
    outcome,
    read_at,
    share_of_values,
)

FORMAT, VERSION = "saelab-ioi-yardstick", 1
ATTRIBUTES = ("IO", "S", "order")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        sae = dictionary_of(asked.dictionary)
        if sae.hook is None or sae.hook_out is not None:
            raise ConfigError("The yardstick needs a dictionary that writes where it reads.")
        positions, model = asked.position or ["S2", "END"], None
        for position in positions:
            path = asked.out / f"{position}.json"
            settings = settings_of(asked, position)
            if not path.is_file():
                model = model or opened_model(asked.model, asked.device)
                write_json(path, {**settings, **measured(model, sae, position, asked)})
            found = read_json(path, "a result of probes.ioi_yardstick")
            if {key: found.get(key) for key in settings} != settings:
                raise ConfigError(f"{path} was made with other settings. Choose another --out.")
            for line in report(found):
                say(line)

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.ioi_yardstick", description=__doc__)
    parser.add_argument("dictionary", type=Path, help="folder of a run or of a dictionary")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--position", action="append", choices=("IO", "S1", "S2", "END"), help="(S2, END)"
    )
    parser.add_argument("--prompts", type=int, default=800, help="prompts, half to fit (800)")
    parser.add_argument("--tested", type=int, default=64, help="prompts run with edits (64)")
    parser.add_argument("--k", type=int, action="append", help="latents; repeatable (2, 8, 32)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    add_model(parser)
    return parser


def settings_of(asked: argparse.Namespace, position: str) -> dict[str, Any]:
    """Everything a result depends on."""
    settings = {name: getattr(asked, name) for name in ("model", "prompts", "tested", "seed")}
    settings |= {"dictionary": str(asked.dictionary), "position": position}
    settings["k"] = asked.k or [2, 8, 32]
    return {"format": FORMAT, "version": VERSION, "settings": settings}


def measured(
    model: LanguageModel, sae: SAE, position: str, asked: argparse.Namespace
) -> dict[str, Any]:
    """All three tests at one position."""
    started, hook = time.monotonic(), str(sae.hook)
    seen = ioi_prompts(model, asked.prompts // 2, seed=asked.seed)
    held = ioi_prompts(model, asked.tested, names=seen.names, seed=asked.seed + 1)
    x, y = (read_at(model, one, hook, position) for one in (seen, held))
    told = {
        method: fit_supervised(x, seen.attributes(), method, seen.sizes)
        for method in ("mean", "mse")
    }
    random = random_like(sae, x)
    recons = {name: one.reconstruct(held.attributes()) for name, one in told.items()}
    recons |= {"dictionary": decoded(sae, y), "random": decoded(random, y)}
    mean = x.mean(0)
    clean = outcome(model, held)
    ablated = outcome(model, held, hook, position, mean.expand_as(y).contiguous()).mean_difference
    known = clean.mean_difference, ablated
    rows = []
    for name, values in recons.items():
        one = approximate(model, held, hook, position, y, values, mean, known=known)
        missed = float((values - y).square().sum() / (y - mean).square().sum())
        rows.append({"of": name, "sufficiency": one.sufficiency, "necessity": one.necessity,
                     "fvu": missed})  # fmt: skip
        say(f"{position} {name}: approximated")
    control = []
    for attribute in ATTRIBUTES:
        control += controlled(
            model, held, (hook, position), attribute, y,
            {"dictionary": sae, "random": random}, told["mse"], asked.k or [2, 8, 32], asked.seed,
            clean.choice,
        )  # fmt: skip
        say(f"{position} {attribute}: controlled")
    return {
        "names": list(seen.names),
        "clean": known[0],
        "ablated": known[1],
        "right": agreement(clean.choice, held.attributes()["IO"]),
        "approximation": rows,
        "control": control,
        "interpretation": {
            name: interpreted(one, seen, x)
            for name, one in (("dictionary", sae), ("random", random))
        },
        "seconds": round(time.monotonic() - started, 1),
    }


def decoded(sae: SAE, x: Tensor) -> Tensor:
    """The reconstruction, without gradient."""
    return sae.decode(sae.encode(x)).detach().float()


def random_like(sae: SAE, x: Tensor) -> SAE:
    """As many random directions, of which each token takes as many: what any directions do."""
    k = max(1, round(float(sae.encode(x).l0().float().mean())))
    found = SAE(
        sae.d_in, sae.d_sae, TopK(k), hook=sae.hook, normalization=sae.normalization, seed=77
    )
    with torch.no_grad():
        found.b_dec.copy_(x.mean(0) * sae.normalization.scale_out)
    return found


def controlled(
    model: LanguageModel,
    prompts: IoiPrompts,
    place: tuple[str, str],
    attribute: str,
    x: Tensor,
    dictionaries: dict[str, SAE],
    told: Any,
    ks: Sequence[int],
    seed: int,
    untouched: Tensor,
) -> list[dict[str, Any]]:
    """Edits of one attribute: nothing, the supervised vectors, k latents."""
    hook, position = place
    other = counterfactual(model, prompts, attribute, seed)
    y = read_at(model, other, hook, position)
    wanted = outcome(model, prompts, hook, position, y).choice

    def reached(values: Tensor) -> float:
        return agreement(outcome(model, prompts, hook, position, values).choice, wanted)

    before, after = prompts.attributes()[attribute], other.attributes()[attribute]
    common = {"attribute": attribute}
    rows = [
        {**common, "of": "nothing", "k": 0, "removed": 0.0,
         "agreement": agreement(untouched, wanted)},
        {**common, "of": "mse", "k": 2, "removed": None,
         "agreement": reached(x + told.exchange(attribute, before, after))},
    ]  # fmt: skip
    for name, sae in dictionaries.items():
        source, target = (sae.encode(one).dense().float() for one in (x, y))
        directions = sae.W_dec.detach().float() / sae.normalization.scale_out
        for k in ks:
            edit = greedy_edit(x, source, target, y, directions, k)
            removed = float(edit.removed.mean())
            rows.append({**common, "of": name, "k": k, "removed": removed,
                         "agreement": reached(edit.edited)})  # fmt: skip
    return rows


def interpreted(sae: SAE, prompts: IoiPrompts, x: Tensor) -> dict[str, Any]:
    """What latents stand for."""
    found = matched_values(sae.encode(x).dense(), prompts.attributes())
    good = [one for one in found if one.f1 >= 0.5]
    return {
        "looked_at": len(found),
        "latents": {name: sum(one.attribute == name for one in good) for name in ATTRIBUTES},
        "share": {
            name: share_of_values(found, name, size) for name, size in prompts.sizes.items()
        },
        "best": [
            {"latent": one.latent, "attribute": one.attribute, "values": list(one.values),
             "f1": one.f1}
            for one in sorted(found, key=lambda one: -one.f1)[:10]
        ],
    }  # fmt: skip


def report(found: dict[str, Any]) -> list[str]:
    """The three tables."""
    about = found["settings"]
    lines = [
        f"Position {about['position']}, {about['tested']} prompts, {len(found['names'])} names: "
        f"the model is right on {found['right']:.0%}; logit difference {found['clean']:+.2f}, "
        f"mean-ablated here {found['ablated']:+.2f}",
        f"  {'approximation':16}{'sufficiency':>12}{'necessity':>11}{'FVU':>8}",
    ]
    for row in found["approximation"]:
        lines.append(
            f"  {row['of']:16}{number(row['sufficiency']):>12}{number(row['necessity']):>11}"
            f"{row['fvu']:>8.3f}"
        )
    lines.append(f"  {'control':16}{'k':>4}" + "".join(f"{name:>9}" for name in ATTRIBUTES))
    by = {(row["of"], row["k"], row["attribute"]): row["agreement"] for row in found["control"]}
    for of, k in dict.fromkeys((row["of"], row["k"]) for row in found["control"]):
        cells = "".join(f"{by[of, k, name]:>9.0%}" for name in ATTRIBUTES)
        lines.append(f"  {of:16}{k or '-':>4}{cells}")
    for name, one in found["interpretation"].items():
        counts = ", ".join(f"{what} {n}" for what, n in one["latents"].items())
        shares = ", ".join(f"{what} {share:.0%}" for what, share in one["share"].items())
        best = f"{one['best'][0]['f1']:.2f}" if one["best"] else "-"
        lines.append(
            f"  interpretation, {name}: of {one['looked_at']} latents F1 >= 0.5 for {counts}; "
            f"values with one: {shares}; best F1 {best}"
        )
    return lines


def number(value: float | None) -> str:
    """A number, or that there is none."""
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
