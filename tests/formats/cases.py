"""The dictionaries that tests export, and that other libraries then open."""

from pathlib import Path
from typing import Any

import torch

from saelab import SAE
from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    BatchTopK,
    GroupMax,
    JumpReLU,
    ReLU,
    TopK,
)
from saelab.normalization import Normalization

GOLDEN = Path(__file__).parent.parent / "golden"
RESID: dict[str, Any] = {"hook": "blocks.3.hook_resid_post"}
MLP: dict[str, Any] = {"hook": "blocks.3.mlp.hook_in", "hook_out": "blocks.3.hook_mlp_out"}


def activation(name: str) -> ActivationFunction:
    return {
        "relu": lambda: ReLU(),
        "topk": lambda: TopK(4),
        "abstopk": lambda: AbsTopK(4),
        "groupmax": lambda: GroupMax(4),
        "jumprelu": lambda: JumpReLU(threshold=0.5, bandwidth=0.1),
        "batchtopk": lambda: BatchTopK(4.0),
        "batchtopk_fractional": lambda: BatchTopK(2.5),
    }[name]()


def dictionary(kind: str, **settings: Any) -> SAE:
    """A 6 x 16 dictionary with random weights and thresholds, and scales that are not one."""
    scales = Normalization(scale_in=0.25, scale_out=0.5 if settings.get("hook_out") else 0.25)
    sae = SAE(
        6,
        16,
        activation(kind),
        normalization=scales,
        metadata={"model": {"name": "tiny"}},
        **{**RESID, **settings},
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if isinstance(sae.activation, BatchTopK):
        sae.activation.threshold.fill_(0.625)
    sae.activation.constrain()
    return sae


OURS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "saelens": {
        "transcoder": ("relu", {**MLP, "d_out": 5}),
        "skip_transcoder": ("relu", {**MLP, "d_out": 5, "skip": True}),
        "jumprelu_transcoder": ("jumprelu", {**MLP, "d_out": 5}),
        "jumprelu_skip_transcoder": ("jumprelu", {**MLP, "skip": True}),
        "batchtopk_transcoder": ("batchtopk", {**MLP, "d_out": 5}),
    },
    "dictionary_learning": {
        "relu": ("relu", {}),
        "relu_not_centered": ("relu", {"pre_bias": False}),
        "topk": ("topk", {}),
        "topk_not_centered": ("topk", {"pre_bias": False}),
        "jumprelu": ("jumprelu", {}),
        "batchtopk": ("batchtopk", {}),
        "batchtopk_fractional": ("batchtopk_fractional", {}),
        "transcoder": ("topk", MLP),
    },
    "sparsify": {
        "topk/layers.3": ("topk", {}),
        "topk_not_centered/layers.3": ("topk", {"pre_bias": False}),
        "groupmax/layers.3": ("groupmax", {}),
        "transcoder/layers.3.mlp": ("topk", MLP),
        "skip/layers.3.mlp": ("groupmax", {**MLP, "skip": True}),
    },
}
"""What we export for each library that is installed where golden files are made."""
