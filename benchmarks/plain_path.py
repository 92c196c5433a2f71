"""Does the fast path learn what plain autograd learns? Held-out FVU of both, over seeds.

    python -m benchmarks.plain_path --store runs/reference/activations

The plain path is TopK training as one would write it down: a dense code matrix, torch's autograd
through it, torch.optim.Adam, and the same start, batches, learning rates, projection and clipping.
Both see the first tokens of the store and are measured on its last ones. The objective is squared
error alone (no AuxK).
"""

import argparse
import copy
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.metrics import fvu
from saelab.objectives import Reconstruction
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import TrainConfig, Trainer
from saelab.training.optimizers import rate_at

HELD_OUT = 20_000
"""Tokens at the end of the store that are measured and not trained on."""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of a finished harvest")
    parser.add_argument("--d-sae", type=int, default=2304, help="latents (2304)")
    parser.add_argument("--k", type=int, default=32, help="latents per token (32)")
    parser.add_argument("--tokens", type=int, default=300_000, help="budget of each run (300000)")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of runs (3)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # short runs: many latents are dead
    whole = ActivationStore.open(arguments.store)
    n = min(arguments.tokens, whole.n_tokens - HELD_OUT)
    store = ActivationStore.from_tensor(whole.rows(0, n).activations, hook=whole.hook)
    held_out = whole.rows(whole.n_tokens - HELD_OUT, whole.n_tokens).activations.float()
    threads = torch.get_num_threads()
    print(f"{arguments.d_sae} latents, k {arguments.k}, {n:,} tokens, {threads} threads")
    print("seed   FVU fast  FVU plain  difference  s fast  s plain")
    gaps = []
    for seed in range(arguments.seeds):
        config = TrainConfig(tokens=n, batch_size=2048, seed=seed)
        sae = SAE(store.d_in, arguments.d_sae, TopK(arguments.k), hook=store.hook, seed=seed)
        fast = Trainer(sae, store, config, terms=(Reconstruction(),))
        plain = copy.deepcopy(sae)
        plain.normalization = sae.normalization
        started = time.perf_counter()
        fast.run()
        between = time.perf_counter()
        train_plainly(plain, store, config, fast.variance)
        ended = time.perf_counter()
        found = [_held_out_fvu(one, held_out) for one in (sae, plain)]
        gaps.append(found[0] - found[1])
        print(
            f"{seed:4}  {found[0]:9.5f}  {found[1]:9.5f}  {gaps[-1]:+10.5f}  "
            f"{between - started:6.0f}  {ended - between:7.0f}",
            flush=True,
        )
    print(f"mean difference {statistics.mean(gaps):+.5f}, largest {max(map(abs, gaps)):.5f}")


def train_plainly(sae: SAE, store: ActivationStore, config: TrainConfig, variance: float) -> None:
    """Train a TopK dictionary by the definition; `sae` is at its start and is changed in place."""
    weights = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    optimizer = torch.optim.Adam(weights, lr=1.0, betas=config.betas, eps=6.25e-10)
    k = sae.activation.target_l0 or 0
    batches = store.batches(config.batch_size, seed=config.seed, window_tokens=config.window_tokens)
    for step in range(config.steps):
        x = next(batches).activations.float() * sae.normalization.scale_in
        pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        kept = pre_acts.topk(int(k), dim=1).indices
        latents = torch.zeros_like(pre_acts).scatter(1, kept, pre_acts.gather(1, kept).relu())
        missed = x - (latents @ sae.W_dec + sae.b_dec)
        (missed.square().sum(1).mean() / variance).backward()
        with torch.no_grad():
            _project(sae)
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(weights, config.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(config, step * config.batch_size, sae.d_sae)
            optimizer.step()
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        optimizer.zero_grad()


def _project(sae: SAE) -> None:
    gradient = sae.W_dec.grad
    assert gradient is not None
    gradient -= (gradient * sae.W_dec).sum(1, keepdim=True) * sae.W_dec


def _held_out_fvu(sae: SAE, rows: Tensor) -> float:
    recons = torch.cat([sae.decode(sae.encode(part)) for part in rows.split(2048)])
    return fvu(rows, recons) or 0.0


if __name__ == "__main__":
    main()
