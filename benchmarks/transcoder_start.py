"""Where should a transcoder's decoder directions start?

    python -m benchmarks.transcoder_start                    # a planted MLP of known neurons
    python -m benchmarks.transcoder_start runs/acts          # a store of an MLP's input and output

The same transcoder is trained from three starts, on the same batches: `aimed`, each direction where
the target goes when its latent is active (the default, see saelab/directions.py); `random`; and
`tied`, the encoder transposed, which is what an autoencoder starts with. The planted MLP has 64
neurons, each of which reads one direction and writes another; a neuron counts as found when some
latent's direction has a cosine above 0.9 with it.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from saelab.planted import recovery
from saelab.recipes.transcoder import TranscoderRecipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train

READS, WRITES = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"


def planted(n_tokens: int = 30_000) -> tuple[ActivationStore, Tensor, Tensor]:
    """y = D relu(E x - 0.35) on sparse mixtures x of the directions E; also E and D."""
    generator = torch.Generator().manual_seed(0)
    reads, writes = (
        torch.nn.functional.normalize(torch.randn(64, 32, generator=generator)) for _ in range(2)
    )
    active = torch.rand(n_tokens, 64, generator=generator) < 4 / 64
    x = (active * (0.5 + torch.rand(active.shape, generator=generator))) @ reads
    x += 0.05 * torch.randn(x.shape, generator=generator)
    y = (x @ reads.T - 0.35).relu() @ writes
    return ActivationStore.from_tensor({READS: x, WRITES: y}, hook=READS), reads, writes


def main(argv: Sequence[str] | None = None) -> int:
    """Train from each start and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", help="a harvest; planted data if not given")
    parser.add_argument("--hook", help="the MLP's input, if the store has several")
    parser.add_argument("--tokens", type=int, default=102_400, help="training budget")
    parser.add_argument("--d-sae", type=int, default=128, help="latents")
    parser.add_argument("--k", type=int, default=6, help="latents per token")
    asked = parser.parse_args(argv)
    reads = writes = None
    if asked.store is None:
        store, reads, writes = planted()
    else:
        store = ActivationStore.open(asked.store, asked.hook)
    lr = 3e-3 if asked.store is None else None
    recipe = TranscoderRecipe(
        d_sae=asked.d_sae, k=asked.k, tokens=asked.tokens, batch_size=256, lr=lr
    )
    config = replace(recipe.training(), log_every_tokens=asked.tokens // 40)
    print(
        f"{'start':8} {'FVU at first':>13} {'FVU at last':>12} {'dead':>7} {'read':>6} {'write':>6}"
    )
    for start in ("aimed", "random", "tied"):
        sae = recipe.dictionary(store)
        if start != "aimed":  # directions that somebody chose are kept
            other = SAE(sae.d_in, sae.d_sae, hook=READS, hook_out=WRITES, d_out=sae.d_out, seed=9)
            with torch.no_grad():
                sae.W_dec.copy_(other.W_dec if start == "random" else sae.W_enc.T * 1.0001)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dead latents, which are counted here
            rows = train(sae, store, config, terms=recipe.terms()).metrics
        found = ["", ""]
        if reads is not None and writes is not None:
            pairs = ((reads, sae.W_enc.detach().T), (writes, sae.W_dec.detach()))
            found = [f"{recovery(*pair):.2f}" for pair in pairs]
        print(
            f"{start:8} {rows[0]['fvu']:13.3f} {rows[-1]['fvu']:12.4f} "
            f"{rows[-1]['dead_share']:7.1%} {found[0]:>6} {found[1]:>6}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
