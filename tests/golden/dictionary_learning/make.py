"""Write dictionaries with dictionary_learning, and open ours with it.

Run by `make golden` in an environment that has dictionary-learning, but not saelab:

    python tests/golden/dictionary_learning/make.py

theirs/<class>/  what its classes hold, saved as trainSAE saves it; expected.safetensors has inputs,
                 and the latents and reconstructions after its own load_dictionary
ours/<case>/     what saelab exported; expected.safetensors as above
"""

import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

# Its utilities import this for a reader of compressed text, which nothing here uses.
if importlib.util.find_spec("zstandard") is None:
    sys.modules["zstandard"] = types.ModuleType("zstandard")
    sys.modules["zstandard"].__spec__ = importlib.machinery.ModuleSpec("zstandard", None)

from dictionary_learning import dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary

FOLDER = Path(__file__).parent
D_IN, D_SAE, K = 6, 16, 4


def classes() -> dict[str, torch.nn.Module]:
    return {
        "AutoEncoder": dictionary.AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [3, 5, 8]),
    }


def fill(model: torch.nn.Module, seed: int) -> None:
    """Random weights that bfloat16 holds too, so that a change of type changes no value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values.bfloat16().float())
        if isinstance(model, BatchTopKSAE | MatryoshkaBatchTopKSAE):
            model.threshold.fill_(0.625)


def write(name: str, model: torch.nn.Module) -> None:
    folder = FOLDER / "theirs" / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({key: value.cpu() for key, value in model.state_dict().items()}, folder / "ae.pt")
    trainer = {
        "trainer_class": "SomeTrainer",
        "dict_class": type(model).__name__,
        "lr": 0.0001,
        "steps": 1000,
        "seed": 0,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "device": "cpu",
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "wandb_name": "run",
        "submodule_name": "resid_post_layer_3",
    }
    if hasattr(model, "k"):
        trainer["k"] = K
    buffer = {"d_submodule": D_IN, "io": "out", "n_ctxs": 10, "ctx_len": 128, "device": "cpu"}
    (folder / "config.json").write_text(
        json.dumps({"trainer": trainer, "buffer": buffer}, indent=1)
    )


def record(folder: Path) -> None:
    model, config = load_dictionary(str(folder), device="cpu")
    x = 2 * torch.randn(24, D_IN, generator=torch.Generator().manual_seed(0)) + 0.5
    with torch.no_grad():
        latents = model.encode(x)
        recons = model.decode(latents)
        assert torch.equal(recons, model(x))
    tensors = {"x": x, "latents": latents, "recons": recons}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "expected.safetensors")
    kind = config["trainer"]["dict_class"]
    sys.stdout.write(f"{folder.parent.name}/{folder.name}: {kind}, {type(model).__name__}\n")


def main() -> None:
    for number, (name, model) in enumerate(classes().items()):
        fill(model, number)
        write(name, model)
        record(FOLDER / "theirs" / name)
    write("never_trained", BatchTopKSAE(D_IN, D_SAE, K))  # its threshold is still -1
    for folder in sorted((FOLDER / "ours").glob("*/")):
        record(folder)


if __name__ == "__main__":
    main()
