"""Pairs of random prompts for the tiny models, and a transformer in which everything is linear."""

from functools import cache

import torch
from torch import Tensor

from saelab.models import LanguageModel, load_model
from saelab.patching import Experiment, Pairs
from saelab.patching.experiment import StandIn
from saelab.patching.small_transformer import SmallTransformer, SmallTransformerConfig
from tests import tiny_models
from tests.circuits.circuit_cases import model_of

NAMES = ("gpt2", "llama", "neox")
"""Fused and separate projections, shared keys, parallel blocks."""


def random_pairs(rows: int = 3, length: int = 6, d_vocab: int = 30, seed: int = 1) -> Pairs:
    clean = tiny_models.random_tokens(rows, length, d_vocab, seed=seed)
    patch = clean.clone()
    patch[:, 1:4] = tiny_models.random_tokens(rows, 3, d_vocab, seed=seed + 50)
    answers = tiny_models.random_tokens(rows, 2, d_vocab, seed=seed + 90)
    return Pairs(clean=clean, patch=patch, answers=answers[:, 0], others=answers[:, 1])


@cache
def experiment_of(
    name: str, stand_in: StandIn = "patch", dtype: torch.dtype = torch.float64
) -> Experiment:
    return Experiment(model_of(name, dtype), random_pairs(), stand_in)


@cache
def linear_model() -> LanguageModel:
    """Attention that is the same whatever is written, no MLP, no norm."""
    config = SmallTransformerConfig(
        d_vocab=30, n_ctx=8, d_model=12, n_layers=3, n_heads=2, d_head=4
    )
    module = SmallTransformer(config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            frozen = "q_proj" in name or "k_proj" in name
            drawn: Tensor = torch.randn(parameter.shape, generator=generator).double()
            parameter.copy_(drawn * (0.0 if frozen else 0.4))
    return load_model(module, name="linear", device="cpu", bos_token_id=0)


@cache
def linear_experiment() -> Experiment:
    return Experiment(linear_model(), random_pairs())
