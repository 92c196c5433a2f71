"""Write sparse coders with sparsify, and open ours with it.

Run by `make golden` in an environment that has eai-sparsify, but not saelab:

    python tests/golden/sparsify/make.py

theirs/<case>/<hookpoint>/  what save_to_disk wrote; expected.safetensors has inputs, and the
                            latents and reconstructions of its own forward
ours/<case>/<hookpoint>/    what saelab exported; expected.safetensors as above
"""

import json
import os
import sys
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernel needs a GPU; its plain path does not

import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

FOLDER = Path(__file__).parent
D_IN, D_SAE = 6, 16
CASES = {
    "topk": ("layers.3", {"num_latents": D_SAE, "k": 4}),
    "groupmax": ("layers.3", {"num_latents": D_SAE, "k": 4, "activation": "groupmax"}),
    "expansion": ("layers.0.mlp", {"expansion_factor": 3, "k": 2}),
    "transcoder": ("layers.3.mlp", {"num_latents": D_SAE, "k": 4, "transcode": True}),
    "skip": (
        "layers.3.mlp",
        {"num_latents": D_SAE, "k": 4, "transcode": True, "skip_connection": True},
    ),
}


def write(name: str, hookpoint: str, config: dict[str, object], seed: int) -> Path:
    coder = SparseCoder(D_IN, SparseCoderConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in coder.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values.bfloat16().float())
    folder = FOLDER / "theirs" / name / hookpoint
    coder.save_to_disk(folder)
    run = {"model": "HuggingFaceTB/SmolLM2-135M", "dataset": "text", "sae": config}
    (folder.parent / "config.json").write_text(json.dumps(run, indent=1))
    return folder


def record(folder: Path) -> None:
    coder = SparseCoder.load_from_disk(folder)
    x = 2 * torch.randn(24, D_IN, generator=torch.Generator().manual_seed(0)) + 0.5
    with torch.no_grad():
        output = coder(x)
    latents = torch.zeros(24, coder.num_latents)
    latents.scatter_(1, output.latent_indices, output.latent_acts)
    tensors = {"x": x, "latents": latents, "recons": output.sae_out}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "expected.safetensors")
    place = f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name}"
    sys.stdout.write(f"{place}: {coder.cfg.activation}, transcode={coder.cfg.transcode}\n")


def main() -> None:
    for number, (name, (hookpoint, config)) in enumerate(CASES.items()):
        record(write(name, hookpoint, config, number))
    for folder in sorted((FOLDER / "ours").glob("*/*/")):
        record(folder)


if __name__ == "__main__":
    main()
