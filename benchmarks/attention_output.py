"""Does starting inside the active subspace save latents of attention outputs from dying?

    python -m benchmarks.attention_output                    # planted data of low rank
    python -m benchmarks.attention_output runs/acts --hook blocks.15.attn.hook_z

The same dictionary is trained twice on the same batches, started at random and inside the subspace
(saelab/training/active_subspace.py), without AuxK unless it is asked for, so that nothing else
brings dead latents back. The planted data are Gaussian in 16 of 64 dimensions, with a little noise
in all.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from saelab.effective_dimension import effective_dimension
from saelab.recipes.attention_output import AttentionOutputRecipe
from saelab.store import ActivationStore
from saelab.training import train


def planted(n_tokens: int = 60_000) -> ActivationStore:
    """Gaussian in a random subspace of 16 of 64 dimensions, and a little noise."""
    generator = torch.Generator().manual_seed(2)
    inner = torch.randn(n_tokens, 16, generator=generator)
    basis = torch.linalg.qr(torch.randn(64, 16, generator=generator))[0].T
    noise = 0.01 * torch.randn(n_tokens, 64, generator=generator)
    return ActivationStore.from_tensor(inner @ basis + noise, hook="planted")


def main(argv: Sequence[str] | None = None) -> int:
    """Train both and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", help="a harvest; planted data if not given")
    parser.add_argument("--hook", help="hook point, if the store has several")
    parser.add_argument("--tokens", type=int, default=150_000, help="training budget")
    parser.add_argument("--d-sae", type=int, default=1024, help="latents")
    parser.add_argument("--k", type=int, default=8, help="latents per token")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--auxk", action="store_true", help="keep the AuxK term")
    asked = parser.parse_args(argv)
    store = planted() if asked.store is None else ActivationStore.open(asked.store, asked.hook)
    found = effective_dimension(store)
    print(f"{store.hook}: {found.plain.n_99} of {found.width} directions hold 99 % of the variance")
    recipe = AttentionOutputRecipe(
        d_sae=asked.d_sae, k=asked.k, tokens=asked.tokens, batch_size=512, lr=asked.lr
    )
    print(f"{'start':10} {'FVU':>8} {'dead at the end':>16}")
    for inside in (False, True):
        recipe = replace(recipe, subspace=inside)
        terms = recipe.terms() if asked.auxk else recipe.terms()[:1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dead latents, which are the point
            result = train(recipe.dictionary(store), store, recipe.training(), terms=terms)
        last = result.metrics[-1]
        start = "subspace" if inside else "random"
        print(f"{start:10} {last['fvu']:8.4f} {last['dead_share']:16.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
