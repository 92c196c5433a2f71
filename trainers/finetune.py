"""Finetune a trained dictionary inside the model it belongs to.

    loss = 1/2 (MSE + sg(MSE / KL) KL)        KL(clean model || model with the reconstruction in it)

Karvonen 2025, "Revisiting end-to-end sparse autoencoder training: a short finetune is most you
need": after ordinary training, a short stage in which the gradient comes from the model's
predictions, with the two terms kept equally large. Also Braun, Taylor, Goldowsky-Dill and Sharkey
2024, "Identifying functionally important features with end-to-end sparse dictionary learning": KL
alone, and errors at later hook points. Different: directions stay at norm 1 and BOS, padding and
norm outliers keep their own activations. The run's store says which model and text to use.

    python -m trainers.finetune runs/topk runs/topk-tuned --tokens 200_000
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from saelab.cli.flags import Parser, add_flags, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import opened_model, say
from saelab.errors import StoreError
from saelab.finetuning import FinetuneConfig, finetune
from saelab.run_folders import HarvestSource, dictionary_of, held_out_of, record_store, store_of
from saelab.store import ActivationStore


def main(argv: Sequence[str] | None = None) -> int:
    """Finetune the dictionary of a run from the command line."""

    def work() -> None:
        parser = Parser(prog="python -m trainers.finetune", description=__doc__ or "")
        parser.add_argument("run", type=Path, help="folder of a finished training run")
        parser.add_argument("out", type=Path, help="folder of the finetuned run")
        parser.add_argument("--model", default=None, help="the model (default: the harvest's)")
        parser.add_argument("--device", default=None, help="where the model computes")
        add_flags(parser, FinetuneConfig)
        asked = parse(parser, argv)
        config = from_flags(FinetuneConfig, asked)
        sae, store = dictionary_of(asked.run), store_of(asked.run)
        text = ActivationStore.open(store, sae.hook).tokens
        if text is None:
            raise StoreError(f"{store} does not hold the text it was harvested from.")
        held_out = held_out_of(store) if (store / "tokens" / "held_out").is_dir() else None
        model = opened_model(asked.model or HarvestSource.of(store).model, asked.device)
        with ProgressBar("Finetuning") as bar:
            done = finetune(sae, model, text, config, asked.out, held_out=held_out, progress=bar)
        record_store(asked.out, store)
        before, after = done.before, done.after
        say(f"{asked.out}: {done.metrics[-1]['tokens']:,} tokens in {done.seconds:.0f} s.")
        say(
            f"KL {before.kl:.4f} -> {after.kl:.4f}, CE {before.ce_spliced:.4f} -> "
            f"{after.ce_spliced:.4f} (clean {after.ce_clean:.4f}), "
            f"fvu {before.fvu:.4f} -> {after.fvu:.4f}, l0 {before.l0:.1f} -> {after.l0:.1f}."
        )
        say(f"Next: saelab evaluate {asked.out}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
