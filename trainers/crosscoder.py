"""Crosscoder: one set of latents for several layers of a model, or for two models.

    f = ReLU(TopK_k(sum over sites s of W_enc^s a^s + b_enc))      a_hat^s = W_dec^s f + b_dec^s

Lindsey, Templeton, Marcus, Conerly, Batson, Olah 2024, "Sparse crosscoders for cross-layer features
and model diffing". Followed: one penalty over all sites with --rule relu, where a latent pays the
sum of its norms. Different: TopK unless asked otherwise, with the norm over all sites kept at 1; a
scale for every site.

    saelab harvest --hook blocks.5.hook_resid_post --hook blocks.15.hook_resid_post --out runs/acts
    python -m trainers.crosscoder runs/acts runs/crosscoder --k 32
    python -m trainers.crosscoder runs/base runs/diff --other runs/finetuned     # two models
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from saelab.activation_functions import ReLU, TopK
from saelab.cli.programs import run_program
from saelab.crosscoders import Crosscoder, SiteNorms, train_crosscoder
from saelab.objectives import AuxK, Reconstruction
from saelab.run_folders import record_store
from saelab.store import ActivationStore, paired
from saelab.training import TrainResult
from saelab.training.config import TrainConfig


@final
@dataclass(frozen=True, kw_only=True)
class CrosscoderSettings:
    """A crosscoder over the hook points of a store."""

    site: tuple[str, ...] = ()
    """Hook points; all that the store has if none is named."""
    other: Path | None = None
    """Store of a second model, harvested on the same tokens with the same settings."""
    d_sae: int = 4608
    """Latents."""
    rule: Literal["topk", "relu"] = "topk"
    """Which latents are active: the k largest, or those that an L1 penalty leaves."""
    k: int = 32
    """Latents per token, with topk."""
    penalty: float = 2.0
    """Weight of the sum of norms, with relu."""
    tokens: int = 1_500_000
    """Training budget in tokens."""
    batch_size: int = 2048
    """Tokens per step."""
    lr: float | None = None
    """Peak learning rate; None for 2e-3 * sqrt(4608 / d_sae)."""
    seed: int = 0
    """Of the directions and of the order of the data."""


def make(
    settings: CrosscoderSettings, store: Path, out: Path, progress: Callable[..., None]
) -> TrainResult:
    """Train a crosscoder on one store, or on two."""
    found = ActivationStore.open(store)
    if settings.other is not None:
        found = paired({"first": found, "other": ActivationStore.open(settings.other)})
    topk = settings.rule == "topk"
    crosscoder = Crosscoder.over(
        found,
        settings.site or found.hooks,
        settings.d_sae,
        TopK(settings.k) if topk else ReLU(),
        seed=settings.seed,
    )
    config = TrainConfig(
        tokens=settings.tokens,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
        decoder="unit" if topk else "free",
    )
    widths = tuple(site.width for site in crosscoder.sites)
    penalty = SiteNorms(widths, coefficient=settings.penalty)
    terms = [Reconstruction(), AuxK() if topk else penalty]
    result = train_crosscoder(crosscoder, found, config, out, terms=terms, progress=progress)
    record_store(out, store)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    name = "python -m trainers.crosscoder"
    return run_program(name, __doc__ or "", CrosscoderSettings, make, argv)


if __name__ == "__main__":
    sys.exit(main())
