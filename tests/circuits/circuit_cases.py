"""Tiny models of four architectures, and random dictionaries of every kind on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelab.activation_functions import AbsTopK, ActivationFunction, JumpReLU, TopK
from saelab.circuits import LocalReplacement, ReadOuts
from saelab.cross_layer import CrossLayerTranscoder
from saelab.models import LanguageModel, load_model
from saelab.normalization import Normalization
from saelab.sae import SAE
from tests import tiny_models

MAKERS: dict[str, Callable[..., Any]] = {
    "gpt2": tiny_models.tiny_gpt2,
    "llama": tiny_models.tiny_llama,
    "neox": tiny_models.tiny_neox,
    "gemma2": tiny_models.tiny_gemma2,
}
WIDTH = tiny_models.D_MODEL
N_LATENTS = 24
PROMPT = tiny_models.random_tokens(1, 7, 250, seed=3)[0]

_models: dict[tuple[str, torch.dtype], LanguageModel] = {}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """One model an architecture and type, shared: nothing that is traced changes it."""
    key = name, dtype
    if key not in _models:
        _models[key] = load_model(
            MAKERS[name](seed=5).to(dtype),
            tokenizer=tiny_models.tiny_tokenizer(),
            name=f"tiny-{name}",
            device="cpu",
        )
    return _models[key]


def filled(sae: SAE, seed: int) -> SAE:
    """Random biases, skip path and encoder, so that forgetting one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight, size in ((sae.W_enc, 0.5), (sae.b_enc, 0.3), (sae.b_dec, 0.3)):
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
        if sae.W_skip is not None:
            sae.W_skip.copy_(torch.randn(sae.W_skip.shape, generator=generator) * 0.1)
        if isinstance(sae.activation, JumpReLU):
            sae.activation.threshold.fill_(0.2)
    return sae


def transcoder(
    layer: int,
    activation: ActivationFunction | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    skip: bool = False,
    hook_out: str = "hook_mlp_out",
    seed: int = 0,
) -> SAE:
    sae = SAE(
        WIDTH,
        N_LATENTS,
        activation or TopK(4),
        hook=f"blocks.{layer}.mlp.hook_in",
        hook_out=f"blocks.{layer}.{hook_out}",
        skip=skip,
        normalization=Normalization(scale_in=2.0, scale_out=0.5),
        dtype=dtype,
        seed=seed,
    )
    return filled(sae, seed + layer)


def transcoders(dtype: torch.dtype = torch.float64) -> list[SAE]:
    """Of layers 0 and 2: a skip path and signed latents, and thresholds; layer 1 has none."""
    return [
        transcoder(0, AbsTopK(4), dtype=dtype, skip=True),
        transcoder(2, JumpReLU(), dtype=dtype),
    ]


def autoencoder(hook: str, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> SAE:
    return filled(SAE(width, N_LATENTS, AbsTopK(3), hook=hook, dtype=dtype), 7)


def cross_layer(
    selection: Any = "layer", dtype: torch.dtype = torch.float64
) -> CrossLayerTranscoder:
    layers = range(3)
    clt = CrossLayerTranscoder(
        [f"blocks.{n}.mlp.hook_in" for n in layers],
        [f"blocks.{n}.hook_mlp_out" for n in layers],
        d_in=WIDTH,
        d_sae=N_LATENTS,
        k=3,
        selection=selection,
        normalizations=[Normalization(scale_in=2.0**n, scale_out=2.0 ** (1 - n)) for n in layers],
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for bias in (*clt.b_enc, *clt.b_dec):
            bias.copy_(torch.randn(bias.shape, generator=generator) * 0.3)
    return clt


def every_readout(replacement: LocalReplacement) -> list[ReadOuts]:
    """All latents' pre-activations, two directions of the last stream, a query and a key."""
    generator = torch.Generator().manual_seed(2)
    n_pos = len(replacement.tokens)
    found = replacement.readouts(torch.arange(len(replacement.latents)))
    for hook in (replacement.map.head, "blocks.1.attn.q", "blocks.2.attn.k"):
        x = replacement.map.reads[hook]
        directions = torch.randn(2, x.shape[1], generator=generator).to(x)
        offsets = torch.randn(2, generator=generator).to(x)
        found.append(ReadOuts(hook, torch.tensor([n_pos - 1, 2]), directions, offsets))
    return found


def residual(replacement: LocalReplacement, readouts: list[ReadOuts]) -> float:
    """Largest |value - sum of terms|, as a share of the largest value."""
    values = replacement.values(readouts).double()
    sums: Tensor = replacement.decompose(readouts).sums()
    return float((values - sums).abs().max() / values.abs().max())
