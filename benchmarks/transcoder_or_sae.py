"""One MLP, the same number of latents per token: transcoder, skip transcoder, or autoencoder?

    saelab harvest --hook blocks.15.mlp.hook_in --hook blocks.15.hook_mlp_out --out runs/mlp
    python -m benchmarks.transcoder_or_sae runs/mlp

An autoencoder reads the MLP's output and writes it again; a transcoder has to compute it from the
MLP's input. All three are TopK dictionaries of the same size, trained on the same first tokens of
the store in the same order, and measured on its last ones; the losses are of held-out text with
what the dictionary writes in place of the MLP's output. Mean over seeds, and half the range.

    FVU           share of the output's variance that is missed
    CE recovered  (CE with zeros - CE with the dictionary) / (CE with zeros - CE of the model)
    KL            nats per token, from the model's predictions
    dead          share of latents that fire on none of the measured tokens
"""

import argparse
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

from saelab.evaluation import evaluate
from saelab.measuring import EvaluateConfig
from saelab.models import load_model
from saelab.recipes import Recipe
from saelab.recipes.skip_transcoder import SkipTranscoderRecipe
from saelab.recipes.topk import TopKRecipe
from saelab.recipes.transcoder import TranscoderRecipe, mlp_output_of
from saelab.run_folders import HarvestSource, held_out_of
from saelab.store import ActivationStore
from saelab.training import train

HELD_OUT = 20_000
"""Tokens at the end of the store that are measured and not trained on."""
COLUMNS = ("fvu", "ce_recovered_zero", "kl", "dead_share", "l0")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", type=Path, help="folder of a finished harvest of both ends")
    parser.add_argument("--d-sae", type=int, default=2304, help="latents (2304)")
    parser.add_argument("--k", type=int, default=32, help="latents per token (32)")
    parser.add_argument("--tokens", type=int, default=250_000, help="budget of each run (250000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (3)")
    parser.add_argument("--loss-tokens", type=int, default=2048, help="tokens for losses (2048)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # what is off shows in the table
    whole = ActivationStore.open(arguments.store)
    read = next(hook for hook in whole.hooks if hook.endswith("mlp.hook_in"))
    written = mlp_output_of(whole.at(read))
    last = whole.n_tokens - HELD_OUT
    tokens = min(arguments.tokens, last)
    common = {"d_sae": arguments.d_sae, "k": arguments.k, "tokens": tokens}
    kinds: dict[str, tuple[type[Recipe], dict[str, str]]] = {
        "autoencoder": (TopKRecipe, {"hook": written}),
        "transcoder": (TranscoderRecipe, {"hook": read, "hook_out": written}),
        "skip transcoder": (SkipTranscoderRecipe, {"hook": read, "hook_out": written}),
    }
    both = (read, written)
    train_on, measure_on = _part(whole, both, 0, tokens), _part(whole, both, last, whole.n_tokens)
    model = load_model(HarvestSource.of(arguments.store).model)
    text = held_out_of(arguments.store)
    config = EvaluateConfig(max_tokens=HELD_OUT, max_loss_tokens=arguments.loss_tokens)
    print(f"{read} -> {written}: {arguments.d_sae} latents, k {arguments.k}, {tokens:,} tokens")
    print(f"{'':15} " + "  ".join(f"{name:>17}" for name in COLUMNS))
    for name, (kind, settings) in kinds.items():
        rows = []
        for seed in range(arguments.seeds):
            recipe = kind(**common, **settings, seed=seed)  # type: ignore[arg-type]
            store = train_on.at(written) if name == "autoencoder" else train_on
            sae = recipe.dictionary(store)
            train(sae, store, recipe.training(), terms=recipe.terms(), upkeep=recipe.upkeep())
            found = evaluate(sae, measure_on, model=model, tokens=text, config=config)
            rows.append([float(getattr(found, column)) for column in COLUMNS])
        print(f"{name:15} " + "  ".join(map(_spread, zip(*rows, strict=True))), flush=True)


def _part(whole: ActivationStore, hooks: Sequence[str], start: int, stop: int) -> ActivationStore:
    rows = whole.rows(start, stop, hooks=hooks)
    return ActivationStore.from_tensor(rows.activations)


def _spread(values: tuple[float, ...]) -> str:
    return f"{statistics.mean(values):9.4f} ±{(max(values) - min(values)) / 2:6.4f}"


if __name__ == "__main__":
    main()
