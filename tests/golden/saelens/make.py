"""Open our saved dictionaries with SAELens itself and record what it computes.

Run by `make golden` in an environment that has sae-lens and safetensors, but not saelab:

    python tests/golden/saelens/make.py
"""

import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import save_file

FOLDER = Path(__file__).parent


def main() -> None:
    for folder in sorted(path for path in FOLDER.iterdir() if (path / "cfg.json").exists()):
        sae = SAE.load_from_disk(str(folder), device="cpu")
        x = 5 * torch.randn(24, sae.cfg.d_in, generator=torch.Generator().manual_seed(0)) + 1
        with torch.no_grad():
            latents = sae.encode(x)
            recons = sae.decode(latents)
        save_file(
            {"x": x, "latents": latents.contiguous(), "recons": recons.contiguous()},
            str(folder / "expected.safetensors"),
        )
        sys.stdout.write(f"{folder.name}: {sae.cfg.architecture()}, {type(sae).__name__}\n")


if __name__ == "__main__":
    main()
