"""Every family on the same real activations at the same sparsity: what does each lose?

    python -m benchmarks.families --store runs/reference/activations --out runs/families

Each dictionary is trained on the first tokens of the store, in the same order, and measured on the
store's held-out text. Families that keep k latents, or aim at it, are given k; those with a
coefficient instead have it searched on the first seed, in runs of the whole budget (a short run
ends at another L0), until L0 is within a tenth of k, and the L0 they reach stands in the table.
Values are the mean over seeds, with half the range.

    FVU           share of variance missed on held-out tokens
    CE recovered  (CE with zeros - CE with the reconstruction) / (CE with zeros - CE of the model)
    dead          share of latents that fire on none of the held-out tokens
    tokens/s      training tokens over the wall time of training steps

Finished runs are kept in --out: an interrupted benchmark goes on where it stopped.
"""

import argparse
import dataclasses
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.fidelity import ce_recovered, next_token_loss
from saelab.models import LanguageModel, load_model
from saelab.positions import scored_predictions
from saelab.recipes import Recipe, recipe_of
from saelab.run_folders import HarvestSource, held_out_of
from saelab.sae import SAE
from saelab.steering import splice
from saelab.store import ActivationStore
from saelab.tokens import Tokens
from saelab.training import train

FAMILIES = (
    *("topk", "abs_topk", "group_max", "multi_topk", "batch_topk", "batch_abs_topk"),
    *("matryoshka", "mutual_choice", "feature_choice", "jumprelu", "matching_pursuit"),
    *("top_afa", "group_bias", "jumprelu_tanh", "gated", "relu_l1_april2024", "relu_l1_2023"),
    "p_annealing",
)
KNOBS = {
    "top_afa": ("afa", -1.0),
    "group_bias": ("highest", 1.0),
    "jumprelu_tanh": ("l0", -1.0),
    "gated": ("l1", -1.0),
    "relu_l1_april2024": ("l1", -1.0),
    "relu_l1_2023": ("l1", -1.0),
    "p_annealing": ("l1", -1.0),
}
"""Setting that moves L0 where k is none, and the slope of log L0 over its log to start with."""
SETTINGS: dict[str, dict[str, Any]] = {"group_bias": {"rate": 0.1, "buffer_tokens": 4096}}
"""Where a budget of a hundred steps asks for something else than a recipe's defaults."""
TRIES = 6
MEASURED = 20_000
"""Held-out tokens for FVU, L0 and dead latents."""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of a finished harvest")
    parser.add_argument("--out", type=Path, required=True, help="where finished rows are kept")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help="which (all)")
    parser.add_argument("--k", type=int, default=32, help="latents per token (32)")
    parser.add_argument("--d-sae", type=int, default=2304, help="latents (2304)")
    parser.add_argument("--tokens", type=int, default=300_000, help="budget of each run (300000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each family (3)")
    parser.add_argument("--loss-tokens", type=int, default=2048, help="tokens for CE (2048)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # what is off shows in the table
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    print(f"{'family':18} {'L0':>6}  {'FVU':>14}  {'CE recovered':>14}  {'dead':>6}  tokens/s")
    for family in arguments.families:
        print(bench.row(family), flush=True)


class Bench:
    """The data, the measures, and what is finished already."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        whole = ActivationStore.open(arguments.store)
        n = min(arguments.tokens, whole.n_tokens - MEASURED)
        self.store = ActivationStore.from_tensor(whole.rows(0, n).activations, hook=whole.hook)
        last = whole.rows(whole.n_tokens - MEASURED, whole.n_tokens).activations
        self.held_out = last.float()
        self.tokens = n
        self._loss: Callable[[SAE], float | None] | None = None

    def row(self, family: str) -> str:
        """Train and measure one family, and put it in words."""
        recipe = self.recipe(family)
        found = [
            self.kept(family, seed, dataclasses.replace(recipe, seed=seed))
            for seed in range(self.arguments.seeds)
        ]
        columns = {name: [float(one[name]) for one in found] for name in found[0]}
        mean = {name: statistics.mean(values) for name, values in columns.items()}
        half = {name: (max(values) - min(values)) / 2 for name, values in columns.items()}
        return (
            f"{family:18} {mean['l0']:6.1f}  {mean['fvu']:.4f} ±{half['fvu']:.4f}  "
            f"{mean['ce']:.4f} ±{half['ce']:.4f}  {mean['dead']:6.1%}  {mean['speed']:8,.0f}"
        )

    def recipe(self, family: str) -> Recipe:
        """The family's own settings, with the common size and the sparsity asked for."""
        arguments = self.arguments
        kind: Any = recipe_of(family)  # its own fields are not those of every recipe
        common: dict[str, Any] = {"d_sae": arguments.d_sae, "tokens": self.tokens}
        common |= SETTINGS.get(family, {})
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if "k" in fields:
            number = type(fields["k"].default)
            return kind(**common, k=number(arguments.k))
        name, slope = KNOBS[family]
        value = float(fields[name].default)  # type: ignore[arg-type]
        path = arguments.out / f"{family}.setting.json"
        if path.exists():
            return kind(**common, **{name: json.loads(path.read_text())})
        tried: list[tuple[float, float]] = []
        for _ in range(TRIES):
            l0 = self.measured(kind(**common, **{name: value}))[0]["l0"]
            print(f"  {family}: {name} {value:.4g} gives L0 {l0:.1f}", flush=True)
            tried.append((math.log(value), math.log(max(l0, 0.1))))
            if abs(l0 / arguments.k - 1) < 0.1:
                break
            if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
                slope = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]) or slope
            step = (math.log(arguments.k) - tried[-1][1]) / slope
            value = math.exp(tried[-1][0] + max(-1.6, min(1.6, step)))
        best = min(tried, key=lambda pair: abs(pair[1] - math.log(arguments.k)))
        path.write_text(json.dumps(math.exp(best[0])))
        return kind(**common, **{name: math.exp(best[0])})

    def kept(self, family: str, seed: int, recipe: Recipe) -> dict[str, float]:
        """The numbers of one run, measured now or before."""
        path = self.arguments.out / f"{family}.{seed}.json"
        if not path.exists():
            numbers, sae = self.measured(recipe)
            numbers["ce"] = self.loss(sae) or math.nan
            path.write_text(json.dumps(numbers))
        return json.loads(path.read_text())

    def measured(self, recipe: Recipe) -> tuple[dict[str, float], SAE]:
        """Train one dictionary; its numbers on held-out activations."""
        sae = recipe.dictionary(self.store)
        result = train(
            sae, self.store, recipe.training(), terms=recipe.terms(), upkeep=recipe.upkeep()
        )
        missed, pairs = 0.0, 0
        fired = torch.zeros(sae.d_sae, dtype=torch.int64)
        for rows in self.held_out.split(2048):
            codes = sae.encode(rows)
            pairs += codes.n_pairs
            fired += codes.firing_counts()
            missed += (rows - sae.decode(codes)).square().sum().item()
        spread = (self.held_out - self.held_out.mean(0)).square().sum().item()
        numbers = {
            "l0": pairs / len(self.held_out),
            "fvu": missed / spread,
            "dead": (fired == 0).float().mean().item(),
            "speed": result.metrics[-1]["tokens"] / result.seconds,
        }
        return numbers, sae

    def loss(self, sae: SAE) -> float | None:
        """CE recovered; the model is loaded, and its own losses measured, the first time."""
        if self._loss is None:
            source = HarvestSource.of(self.arguments.store)
            text = held_out_of(self.arguments.store)
            rows = -(-self.arguments.loss_tokens // text.length)
            self._loss = _loss_meter(load_model(source.model), text[:rows])
        return self._loss(sae)


def _loss_meter(model: LanguageModel, text: Tokens) -> Callable[[SAE], float | None]:
    def mean_loss() -> float:
        total, count = 0.0, 0
        for start in range(0, text.n_rows, 4):
            part = text[start : start + 4]
            scored = scored_predictions(part.kept, part.document)
            ids = part.ids.long()
            losses = next_token_loss(model.logits(ids)[:, :-1][scored], ids[:, 1:][scored])
            total, count = total + float(losses.double().sum()), count + len(losses)
        return total / count

    def zeros(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], dim=1)

    clean = mean_loss()
    ablated: dict[str, float] = {}

    def recovered(sae: SAE) -> float | None:
        hook = sae.hook or ""
        if hook not in ablated:
            with model.editing({hook: zeros}):
                ablated[hook] = mean_loss()
        with splice(model, sae):
            return ce_recovered(clean, mean_loss(), ablated[hook])

    return recovered


if __name__ == "__main__":
    main()
