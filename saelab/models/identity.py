"""Which model made this? Name, a hash of the weights, and how the weights were treated."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.errors import ModelError
from saelab.files import sha256_of

__all__ = ["ModelIdentity", "hash_of_files", "hash_of_tensors"]

SOURCES = ("alias", "hub", "folder", "gguf", "module", "bridge")
CONVENTIONS = ("raw", "folded")


@final
@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What is recorded with everything made from a model, so that a mix-up can be noticed.

    Activations of raw and of folded weights differ at most hook points, so the conventions are part
    of the identity. The dtype is not: it rounds the same activations.
    """

    name: str
    """What the user calls the model."""
    weights: str
    """"sha256:<hex>" of the weight files, or of a module's tensors in float32."""
    conventions: str
    """"raw": as published; "folded": norms folded into the weights, and weights centred."""
    source: str
    """Where it came from: alias, hub, folder, gguf, module or bridge."""

    def to_json(self) -> dict[str, str]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelIdentity":
        """From what `to_json` gave.

        Raises:
            ModelError: A field is missing or is not text.
        """
        names = [field.name for field in fields(cls)]
        wrong = [name for name in names if not isinstance(value.get(name), str)]
        if wrong:
            raise ModelError(
                f"A model identity needs the text fields {', '.join(names)}; "
                f"{', '.join(wrong)} missing or not text. The file that holds it was altered."
            )
        return cls(**{name: value[name] for name in names})


def hash_of_files(folder: Path) -> str:
    """SHA-256 over a folder's weight files: each file's name and content hash, sorted by name.

    Raises:
        ModelError: The folder holds no weight file.
    """
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            digest = hashlib.sha256()
            for file in files:
                digest.update(f"{file.name}\0{sha256_of(file)}\n".encode())
            return f"sha256:{digest.hexdigest()}"
    raise ModelError(f"{folder} holds no weight file (*.safetensors or *.bin).")


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors: name, shape and float32 bytes of each, sorted by name.

    >>> hash_of_tensors({"w": torch.zeros(2)}) == hash_of_tensors({"w": torch.zeros(2).bfloat16()})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
