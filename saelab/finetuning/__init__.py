"""Finetuning: make a trained dictionary better at what the model needs, in the model itself.

Training minimizes the error at the hook point; some of that error does the model no harm, and some
a lot. Here the dictionary's reconstruction is spliced into the running model, and the gradient of
the model's predictions reaches the dictionary's weights. The model is frozen.

    result = saelab.finetune(sae, model, tokens, FinetuneConfig(tokens=200_000), "runs/tuned")
    result.before.kl, result.after.kl, result.before.fvu, result.after.fvu
"""

from saelab.finetuning.config import FinetuneConfig
from saelab.finetuning.loop import Finetuner, FinetuneResult, finetune
from saelab.finetuning.losses import (
    CleanPass,
    SpliceCost,
    SplicedPass,
    balanced,
    clean_pass,
    splice_cost,
    spliced_pass,
)

__all__ = [
    "CleanPass",
    "FinetuneConfig",
    "FinetuneResult",
    "Finetuner",
    "SpliceCost",
    "SplicedPass",
    "balanced",
    "clean_pass",
    "finetune",
    "splice_cost",
    "spliced_pass",
]
