"""Files in the layouts of projects that are not installed, written without saelab.

Each function writes one and returns what it should compute, in plain tensor algebra. `python -m
tests.golden.write` keeps those that SAELens has a loader for under golden/saelens/elsewhere, where
SAELens then records its own answer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D_IN, D_SAE, D_OUT = 6, 16, 5
Answer = tuple[Tensor, Tensor]
"""Latents and reconstructions."""


def weights(seed: int, d_out: int = D_IN) -> dict[str, Tensor]:
    """Random weights that bfloat16 holds too, so that a change of type changes no value."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "b_enc": (D_SAE,),
        "W_dec": (D_SAE, d_out),
        "b_dec": (d_out,),
        "threshold": (D_SAE,),
        "W_skip": (D_IN, d_out),
    }
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: value.bfloat16().float() for name, value in found.items()}


def inputs(seed: int = 0) -> Tensor:
    return 2 * torch.randn(24, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5


def jumprelu(w: dict[str, Tensor], x: Tensor, *, skip: bool = False) -> Answer:
    z = x @ w["W_enc"] + w["b_enc"]
    latents = z.relu() * (z > w["threshold"])
    return latents, latents @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"] if skip else 0)


def gemma_scope(root: Path, place: str, seed: int = 1, lower: bool = False) -> dict[str, Tensor]:
    """params.npz at root/place."""
    w = weights(seed)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    arrays = {(n.lower() if lower else n): w[n].numpy() for n in names}
    (root / place).mkdir(parents=True, exist_ok=True)
    np.savez(root / place / "params.npz", **arrays)  # type: ignore[arg-type]
    return w


def gemma_scope_2(
    root: Path, place: str, config: dict[str, Any] | None, seed: int = 2, skip: bool = False
) -> dict[str, Tensor]:
    """params.safetensors at root/place, and config.json if there is one."""
    w = weights(seed)
    tensors = {
        "w_enc": w["W_enc"],
        "b_enc": w["b_enc"],
        "w_dec": w["W_dec"],
        "b_dec": w["b_dec"],
        "threshold": w["threshold"],
    }
    if skip:
        tensors["affine_skip_connection"] = w["W_skip"]
    (root / place).mkdir(parents=True, exist_ok=True)
    save_file(tensors, root / place / "params.safetensors")
    if config is not None:
        (root / place / "config.json").write_text(json.dumps(config))
    return w


def circuit_tracer(
    folder: Path,
    n_layers: int = 2,
    *,
    kind: str = "relu",
    skip: bool = False,
    transposed: bool = False,
    extra: str = "",
) -> list[dict[str, Tensor]]:
    """config.yaml and the layers; `kind` is relu, jumprelu or topk."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "model_name: Qwen/Qwen3-0.6B",
        "model_kind: transcoder_set",
        "feature_input_hook: mlp.hook_in",
        "feature_output_hook: hook_mlp_out",
        "scan: someone/transcoders",
    ]
    if kind == "topk":
        lines += ["activation: topk", "k: 4"]
    (folder / "config.yaml").write_text("\n".join([*lines, extra]) + "\n")
    found = []
    for layer in range(n_layers):
        w = weights(10 + layer)
        tensors = {
            "W_enc": w["W_enc"].T.contiguous(),
            "b_enc": w["b_enc"],
            "W_dec": w["W_dec"].T.contiguous() if transposed else w["W_dec"],
            "b_dec": w["b_dec"],
        }
        if skip:
            tensors["W_skip"] = w["W_skip"].T.contiguous()
        if kind == "jumprelu":
            tensors["activation_function.threshold"] = w["threshold"]
        save_file(tensors, folder / f"layer_{layer}.safetensors")
        found.append(w)
    return found


def per_layer(w: dict[str, Tensor], x: Tensor, kind: str, *, skip: bool = False) -> Answer:
    """What circuit-tracer's single-layer transcoder computes."""
    z = x @ w["W_enc"] + w["b_enc"]
    if kind == "topk":
        values, indices = z.relu().topk(4)
        latents = torch.zeros_like(z).scatter(1, indices, values)
    else:
        latents = z.relu() * (z > w["threshold"]) if kind == "jumprelu" else z.relu()
    return latents, latents @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"] if skip else 0)


def cross_layer(folder: Path, n_layers: int = 3, *, jumps: bool = False) -> list[dict[str, Tensor]]:
    """config.yaml, W_enc_{i} and W_dec_{i} of a cross-layer transcoder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        "model_name: google/gemma-2-2b\nmodel_kind: cross_layer_transcoder\n"
        "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    found = []
    for layer in range(n_layers):
        w = weights(20 + layer)
        generator = torch.Generator().manual_seed(30 + layer)
        w["targets"] = torch.randn(D_SAE, n_layers - layer, D_IN, generator=generator)
        encoder = {"W_enc": w["W_enc"].T.contiguous(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
        if jumps:
            encoder |= {"threshold": w["threshold"], "W_skip": w["W_skip"]}
        named = {f"{name}_{layer}": tensor for name, tensor in encoder.items()}
        save_file(named, folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": w["targets"]}, folder / f"W_dec_{layer}.safetensors")
        found.append(w)
    return found


def openai(path: Path, activation: str = "ReLU") -> dict[str, Tensor]:
    """A state dict as `Autoencoder.state_dict` gives it."""
    w = weights(4)
    state = {
        "pre_bias": w["b_dec"],
        "latent_bias": w["b_enc"],
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
        "latents_activation_frequency": torch.ones(D_SAE),
        "latents_mean_square": torch.zeros(D_SAE),
        "encoder.weight": w["W_enc"].T.contiguous(),
        "decoder.weight": w["W_dec"].T.contiguous(),
        "activation": activation,
        "activation_state_dict": {"k": 4, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return w


def openai_relu(w: dict[str, Tensor], x: Tensor) -> Answer:
    """latents = ReLU(encoder(x - pre_bias) + latent_bias); recons = decoder(latents) + pre_bias."""
    latents = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    return latents, latents @ w["W_dec"] + w["b_dec"]


SECOND = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-270m-pt",
    "hf_hook_point_in": "model.layers.15.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.15.post_feedforward_layernorm.output",
    "affine_connection": True,
}
ELSEWHERE: dict[str, Callable[[Path, str], object]] = {
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": gemma_scope,
    "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44": gemma_scope,
    "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_76": gemma_scope,
    "gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big": lambda root, place: gemma_scope_2(
        root, place, None
    ),
    "gemma-scope-2-270m-pt/transcoder/layer_15_width_16k_l0_big_affine": lambda root, place: (
        gemma_scope_2(root, place, SECOND, skip=True)
    ),
    "qwen3-0.6b-transcoders": lambda root, place: circuit_tracer(root / place, 1),
}
"""Places under golden/saelens/elsewhere, and what writes each."""


def write_elsewhere(root: Path) -> None:
    for place, write in ELSEWHERE.items():
        write(root, place)
    # SAELens's loader wants this file too; circuit-tracer does not have it.
    config = "d_model: {value: 6}\nd_feature: {value: 16}\nbatch_size: {value: 8}\n"
    (root / "qwen3-0.6b-transcoders" / "wandb-config.yaml").write_text(config)
