"""How is a file that somebody else wrote read without trusting it?

Nothing in a file is believed before it is checked: a pickle may only hold tensors and plain values,
an array may only claim the bytes that are there, a key may be given once, and whatever a damaged
file makes a parser raise becomes one FormatError that names the file.
"""

import contextlib
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import FormatError
from saelab.files import format_bytes

__all__ = ["json_of", "npz_of", "pickle_of", "safetensors_of", "take", "yaml_of"]

CONFIG_BYTES = 16 << 20
"""Larger than any configuration; smaller than what could fill the memory."""
INFLATION = 20
"""How many times its size on disk a compressed file may claim to hold."""


def json_of(path: Path) -> dict[str, Any]:
    """A JSON object; a key given twice, NaN and Infinity are refused."""
    with _reading(path, "JSON"):
        value = json.loads(_text(path), object_pairs_hook=_once, parse_constant=_no_constant)
    return _object(value, path)


def yaml_of(path: Path) -> dict[str, Any]:
    """A YAML mapping with text keys; no tags, and no key twice."""
    with _reading(path, "YAML"):
        import yaml

        safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, if built

        class Loader(safe):
            """The safe loader, which here also refuses a repeated key."""

            def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
                pairs = [(self.construct_object(key, deep=True), None) for key, _ in node.value]
                _once(pairs)
                return super().construct_mapping(node, deep)

        value = yaml.load(_text(path), Loader)
    return _object(value, path)


def safetensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU."""
    with _reading(path, "safetensors"):
        from safetensors import safe_open

        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def pickle_of(path: Path) -> dict[str, Any]:
    """A dictionary saved by torch.save, read with weights_only: it can hold no code.

    The older torch.save form, which is not a zip archive, is refused: what it claims cannot be
    compared with what is there before the memory is taken.
    """
    with _reading(path, "torch.save"):
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path, inflation=1)
            if broken := archive.testzip():
                raise ValueError(f"{broken} was altered")
        value = torch.load(path, map_location="cpu", weights_only=True)
    value = _object(value, path)
    for name, tensor in value.items():
        if isinstance(tensor, Tensor):
            _check_storage(tensor, name, path)
    return value


def npz_of(path: Path) -> dict[str, Tensor]:
    """Every array of an .npz file; no pickled objects."""
    with _reading(path, "npz"):
        import numpy as np

        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path, INFLATION)
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    _check_array_header(file, entry, path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def take(
    tensors: Mapping[str, Any],
    origin: Path,
    required: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
    sizes: Mapping[str, int | None] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, Float[Tensor, "..."]], dict[str, int]]:
    """The tensors that were expected, and nothing else, with shapes that agree.

    Args:
        tensors: What the file holds.
        origin: The file, for messages.
        required: Axes of every tensor there must be, such as {"W_enc": "d_in d_sae"}.
        optional: Axes of those there may be.
        sizes: Axes whose length something else already said; None where nothing did.
        dtype: Round to this type first, as a reader that casts on loading would.

    Returns:
        The tensors in float32 (float64 if any is), and the length of every axis.

    Raises:
        FormatError: One is missing, unknown, not a floating-point number, not finite, or of a
            shape that contradicts another.
    """
    axes = {**required, **(optional or {})}
    missing = [name for name in required if name not in tensors]
    unknown = [str(name) for name in tensors if name not in axes]
    if missing or unknown:
        raise FormatError(
            f"{origin} should hold {', '.join(required)}"
            + (f" and perhaps {', '.join(optional)}" if optional else "")
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not understood: {', '.join(sorted(unknown))}" if unknown else "")
            + "."
        )
    found = dict(sizes or {})
    for name, tensor in tensors.items():
        _check_shape(name, tensor, axes[name].split(), found, origin)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    to = torch.float64 if wide and dtype in (None, torch.float64) else torch.float32
    floats = {name: _finite(name, t, dtype, origin).to(to) for name, t in tensors.items()}
    return floats, {axis: n for axis, n in found.items() if n is not None}


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault."""
    try:
        yield
    except FormatError:
        raise
    except FileNotFoundError:
        raise FormatError(f"{path} is missing.") from None
    except Exception as error:  # parsers of damaged files raise anything at all
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(
            f"{path} is not a complete {kind} file: {what}. Download or export it again."
        ) from None


def _text(path: Path) -> str:
    if path.stat().st_size > CONFIG_BYTES:
        raise FormatError(
            f"{path} is {format_bytes(path.stat().st_size)}: too large for a configuration."
        )
    return path.read_text(encoding="utf-8")


def _object(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FormatError(
            f"{path} should hold named values but holds a {type(value).__name__}"
            f"{' with keys that are not text' if isinstance(value, dict) else ''}."
        )
    return value


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return dict(pairs)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _check_archive(archive: zipfile.ZipFile, path: Path, inflation: int) -> None:
    names = archive.namelist()
    claimed = sum(entry.file_size for entry in archive.infolist())
    if len(set(names)) != len(names):
        raise ValueError("an entry is there twice")
    # torch reads an entry marked as a folder as whatever is in memory.
    if folders := [e.filename for e in archive.infolist() if e.is_dir() or e.external_attr & 0x10]:
        raise ValueError(f"{folders[0]} is marked as a folder")
    if claimed > inflation * max(path.stat().st_size, CONFIG_BYTES * (inflation > 1)):
        raise ValueError(f"it claims to hold {format_bytes(claimed)}")


def _check_array_header(file: Any, entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an array whose shape claims other bytes than the entry has, before they are read."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
        raise ValueError(f"{entry.filename} claims {dtype} {shape}, which is not what is there")
    if len(shape) and min(shape) < 0:
        raise ValueError(f"{entry.filename} claims the shape {shape} ({path.name})")


def _check_storage(tensor: Tensor, name: str, path: Path) -> None:
    """A view may repeat one stored number a billion times; a weight may not."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise FormatError(f"{path}: {name} is a {tensor.dtype} tensor of layout {tensor.layout}.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise FormatError(
            f"{path}: {name} claims the shape {tuple(tensor.shape)}, more than its file holds."
        )


def _check_shape(
    name: str, tensor: Any, axes: list[str], found: dict[str, int | None], origin: Path
) -> None:
    if not isinstance(tensor, Tensor):
        raise FormatError(f"{origin}: {name} should be a tensor but is a {type(tensor).__name__}.")
    expected = [found.get(axis) for axis in axes]
    shape = list(tensor.shape)
    fits = len(shape) == len(axes) and all(
        n > 0 and want in (None, n) for n, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(f"{a}={n}" if n else a for a, n in zip(axes, expected, strict=True))
        raise FormatError(f"{origin}: {name} has shape {shape} where [{wanted}] was expected.")
    found.update(zip(axes, shape, strict=True))


def _finite(name: str, tensor: Tensor, dtype: torch.dtype | None, origin: Path) -> Tensor:
    if not tensor.dtype.is_floating_point:
        raise FormatError(f"{origin}: {name} holds {tensor.dtype}; weights are floating-point.")
    tensor = tensor.detach().to(dtype or tensor.dtype)
    if tensor.element_size() == 1:  # 8-bit floats have few operations of their own
        tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise FormatError(f"{origin}: {name} holds NaN or infinite numbers.")
    return tensor
