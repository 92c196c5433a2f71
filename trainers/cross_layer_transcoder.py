"""Cross-layer transcoder: latents that read one MLP and write to it and every later one.

    f^l = TopK(W_enc^l x^l + b_enc^l)      y_hat^m = sum over l <= m of W_dec^{l->m} f^l + b_dec^m

Ameisen, Lindsey, Pearce, Gurnee, Turner, Chen, Citro 2025, "Circuit tracing: revealing
computational graphs in language models". Different: TopK, in each layer or jointly, instead of
JumpReLU with a penalty; decoder directions start where the targets go when their latent is active.

The store holds the inputs and outputs of some MLPs (saelab harvest --hook blocks.3.mlp.hook_in
--hook blocks.3.hook_mlp_out and so on):

    python -m trainers.cross_layer_transcoder runs/acts runs/clt --k 32
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from saelab.cli.flags import Parser, add_flags, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import say
from saelab.cross_layer import CrossLayerTranscoder
from saelab.cross_layer.training import train_cross_layer
from saelab.recipes.transcoder import mlp_output_of
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig


@final
@dataclass(frozen=True, kw_only=True)
class CrossLayerSettings:
    """A cross-layer transcoder of all MLPs whose inputs and outputs a store has."""

    d_sae: int = 2304
    """Latents of each layer."""
    k: int = 32
    """Latents per token: of each layer, or of all with joint selection."""
    selection: Literal["layer", "joint"] = "layer"
    """Whether every layer keeps k latents, or the layers compete for k."""
    tokens: int = 500_000
    """Training budget in tokens."""
    batch_size: int = 2048
    """Tokens per step."""
    lr: float | None = None
    """Peak learning rate; None for 2e-3 * sqrt(4608 / d_sae)."""
    seed: int = 0
    """Of the directions and of the order of the data."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""

    def work() -> None:
        name = "python -m trainers.cross_layer_transcoder"
        parser = Parser(prog=name, description=__doc__)
        parser.add_argument("store", type=Path, help="folder of a finished harvest")
        parser.add_argument("out", type=Path, help="folder of the run")
        add_flags(parser, CrossLayerSettings)
        arguments = parse(parser, argv)
        asked = from_flags(CrossLayerSettings, arguments)
        store = ActivationStore.open(arguments.store)
        reads = [hook for hook in store.hooks if hook.endswith("mlp.hook_in")] or [store.hook]
        writes = [mlp_output_of(store.at(hook)) for hook in reads]
        clt = CrossLayerTranscoder(
            reads,
            writes,
            store.widths[reads[0]],
            asked.d_sae,
            asked.k,
            selection=asked.selection,
            d_out=store.widths[writes[0]],
            seed=asked.seed,
        )
        config = TrainConfig(
            tokens=asked.tokens,
            batch_size=asked.batch_size,
            lr=asked.lr,
            seed=asked.seed,
            center="mean",
        )
        with ProgressBar("Training") as bar:
            result = train_cross_layer(clt, store, config, arguments.out, progress=bar)
        last = result.metrics[-1]
        say(
            f"{arguments.out}: {last['tokens']:,} tokens in {result.seconds:.0f} s; on the last "
            f"batch fvu {last['fvu']:.3f}, l0 {last['l0']:.1f}, {last['dead_share']:.1%} dead."
        )
        for layer, hook in enumerate(writes):
            say(f"  {hook}: fvu {last[f'fvu_layer_{layer}']:.3f}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
