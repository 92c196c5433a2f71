"""Open our dictionaries with SAELens itself, write some with it, and record what it computes.

Run by `make golden` in an environment that has sae-lens and safetensors, but not saelab:

    python tests/golden/saelens/make.py

<family>/        autoencoders that saelab saved, opened with SAE.load_from_disk
ours/<case>/     transcoders that saelab exported, opened the same way
theirs/<case>/   what SAELens saved, of every architecture and of its training checkpoints
elsewhere/       files of Gemma Scope and circuit-tracer, opened with the loaders SAELens has for
                 them; those projects are not installed

expected.safetensors in each has inputs, and the latents and reconstructions SAELens computed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import make_elsewhere
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
COMMON = {"d_in": 6, "d_sae": 16}
SIZES = {**COMMON, "apply_b_dec_to_input": False, "d_out": 5}
INFERENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", COMMON),
    "not_centered": ("standard", {**COMMON, "apply_b_dec_to_input": False}),
    "topk": ("topk", {**COMMON, "k": 4}),
    "topk_rescaled": ("topk", {**COMMON, "k": 4, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ("abstopk", {**COMMON, "k": 4}),
    "abstopk_rescaled": ("abstopk", {**COMMON, "k": 4, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", COMMON),
    "gated": ("gated", COMMON),
    "transcoder": ("transcoder", SIZES),
    "skip_transcoder": ("skip_transcoder", SIZES),
    "jumprelu_transcoder": ("jumprelu_transcoder", SIZES),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", SIZES),
    "layer_norm": ("topk", {**COMMON, "k": 4, "normalize_activations": "layer_norm"}),
}
TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "checkpoint_standard": ("standard", COMMON),
    "checkpoint_topk": ("topk", {**COMMON, "k": 4}),
    "checkpoint_gated": ("gated", COMMON),
    "checkpoint_jumprelu": ("jumprelu", COMMON),
    "checkpoint_batchtopk": ("batchtopk", {**COMMON, "k": 4.0}),
    "checkpoint_matryoshka": (
        "matryoshka_batchtopk",
        {**COMMON, "k": 4.0, "matryoshka_widths": [4, 16]},
    ),
}
FLAT = {"standard": {}, "topk": {"activation_fn_kwargs": {"k": 4}}, "jumprelu": {}, "gated": {}}
SCALE = 0.375


def fill(sae: torch.nn.Module, seed: int) -> None:
    """Random weights that bfloat16 holds too, so that a change of type changes no value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name == "r_mag":
                values = values / 4
            parameter.copy_(values.bfloat16().float())
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.625)


def record(folder: Path, sae: Any) -> None:
    x = 5 * torch.randn(24, sae.cfg.d_in, generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():
        latents = sae.encode(x)
        recons = sae(x)
    tensors = {"x": x, "latents": latents, "recons": recons}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "expected.safetensors")
    place = folder.relative_to(FOLDER)
    sys.stdout.write(f"{place}: {sae.cfg.architecture()}, {type(sae).__name__}\n")


def metadata(transcoder: bool) -> dict[str, Any]:
    found = {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2-small", "l0": 4.0}
    if transcoder:
        found |= {"hook_name": "blocks.3.ln2.hook_normalized"}
        found |= {"hook_name_out": "blocks.3.hook_mlp_out"}
    return found


def write_inference() -> None:
    for number, (name, (architecture, settings)) in enumerate(INFERENCE.items()):
        kind, config = get_sae_class(architecture)
        sae = kind(config(**settings))
        for key, value in metadata("transcoder" in architecture).items():
            setattr(sae.cfg.metadata, key, value)
        fill(sae, number)
        folder = FOLDER / "theirs" / name
        sae.save_model(folder)
        record(folder, SAE.load_from_disk(str(folder), device="cpu"))


def write_training() -> None:
    """Checkpoints, whose meaning is what SAELens makes of them when it saves them for inference."""
    for number, (name, (architecture, settings)) in enumerate(TRAINING.items()):
        kind, config = get_sae_training_class(architecture)
        sae = kind(config(**settings))
        for key, value in metadata(transcoder=False).items():
            setattr(sae.cfg.metadata, key, value)
        fill(sae, 50 + number)
        if hasattr(sae, "threshold"):
            sae.threshold.data.abs_()
        folder = FOLDER / "theirs" / name
        sae.save_model(folder)
        assert isinstance(sae, TrainingSAE)
        sae.save_inference_model(folder / "inference")
        record(folder, SAE.load_from_disk(str(folder / "inference"), device="cpu"))
        for file in (folder / "inference").iterdir():
            file.unlink()
        (folder / "inference").rmdir()


def write_flat() -> None:
    """Configurations as versions 3 to 5 wrote them, which SAELens 6 still reads."""
    for name, extra in FLAT.items():
        folder = FOLDER / "theirs" / f"flat_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        weights = (FOLDER / "theirs" / name / "sae_weights.safetensors").read_bytes()
        (folder / "sae_weights.safetensors").write_bytes(weights)
        config = {
            "architecture": "standard" if name == "topk" else name,
            "d_in": 6,
            "d_sae": 16,
            "activation_fn_str": "topk" if name == "topk" else "relu",
            "apply_b_dec_to_input": True,
            "finetuning_scaling_factor": False,
            "context_size": 128,
            "model_name": "gpt2-small",
            "hook_name": "blocks.3.hook_resid_post",
            "hook_layer": 3,
            "hook_head_index": None,
            "prepend_bos": True,
            "dataset_path": "monology/pile-uncopyrighted",
            "dataset_trust_remote_code": True,
            "normalize_activations": "none",
            "dtype": "torch.float32",
            "device": "cpu",
            "sae_lens_training_version": None,
            **extra,
        }
        (folder / "cfg.json").write_text(json.dumps(config, indent=1))
        record(folder, SAE.load_from_disk(str(folder), device="cpu"))


def write_scaled() -> None:
    """A dictionary of scaled activations, whose factor is told apart from the files."""
    folder = FOLDER / "theirs" / "flat_scaled"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("cfg.json", "sae_weights.safetensors"):
        (folder / file).write_bytes((FOLDER / "theirs" / "flat_standard" / file).read_bytes())
    config = json.loads((folder / "cfg.json").read_text())
    config["normalize_activations"] = True
    (folder / "cfg.json").write_text(json.dumps(config, indent=1))
    sae = SAE.load_from_disk(str(folder), device="cpu")
    sae.fold_activation_norm_scaling_factor(SCALE)
    record(folder, sae)


def main() -> None:
    write_inference()
    write_training()
    write_flat()
    write_scaled()
    saved = [path for path in FOLDER.iterdir() if (path / "cfg.json").exists()]
    for folder in sorted(saved) + sorted((FOLDER / "ours").glob("*/")):
        record(folder, SAE.load_from_disk(str(folder), device="cpu"))
    make_elsewhere.main(record)


if __name__ == "__main__":
    main()
