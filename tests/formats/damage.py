"""Ways to damage, or to contradict, the files of a dictionary; all drawn from one generator.

Every change here either leaves the function as it was (a wider type, a forgotten note) or makes the
files wrong in a way that can be noticed. Changes that give another valid file, such as another k in
a configuration that alone knows k, are left out: nobody could tell.
"""

import io
import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

Files = dict[str, bytes]

FORGETTABLE = {"activation_function.threshold", "W_skip", "affine_skip_connection"}
"""Tensors without which a file of some formats is another valid file."""
WRONG: tuple[Any, ...] = (
    *(None, -1, 0, 1.5, 1e308, 10**30, "", "text", [], {}, [[]], {"a": 1}, float("nan"), "\u0000"),
    *(True, False, "topk\n", [1] * 50),
)


def damaged(files: Files, random_: random.Random) -> tuple[str, Files]:
    """One change of one file; its name, for the report."""
    change = random_.choice(CHANGES)
    names = [name for name in files if _kind(name) in KINDS[change]]
    if not names:
        return damaged(files, random_)
    name = random_.choice(sorted(names))
    changed = dict(files)
    content = change(name, files[name], random_)
    if content == files[name]:  # this kind of damage does not apply to this file
        return damaged(files, random_)
    if content is None:
        del changed[name]
    else:
        changed[name] = content
    return change.__name__, changed


def _kind(name: str) -> str:
    return PurePosixPath(name).suffix


# bytes


def missing(_: str, __: bytes, ___: random.Random) -> None:
    return None


def empty(_: str, __: bytes, ___: random.Random) -> bytes:
    return b""


def truncated(_: str, content: bytes, random_: random.Random) -> bytes:
    # What is cut off must not be white space alone.
    return content[: random_.randrange(1, len(content.rstrip()))]


def longer(name: str, content: bytes, random_: random.Random) -> bytes:
    if _kind(name) == ".yaml":
        return content + b"\n}{"
    return content + random_.randbytes(random_.randrange(1, 40)) + b"x"


def noise(_: str, content: bytes, random_: random.Random) -> bytes:
    return random_.randbytes(len(content))


def broken_header(_: str, content: bytes, random_: random.Random) -> bytes:
    """One byte of the part that says what the rest is."""
    (length,) = struct.unpack("<Q", content[:8])
    return _with_byte(content, random_.randrange(0, 8 + length), random_)


def broken_byte(_: str, content: bytes, random_: random.Random) -> bytes:
    """Any byte of an archive, whose parts have checksums."""
    return _with_byte(content, random_.randrange(len(content)), random_)


def _with_byte(content: bytes, place: int, random_: random.Random) -> bytes:
    byte = bytes([content[place] ^ random_.randrange(1, 256)])
    return content[:place] + byte + content[place + 1 :]


def inserted(_: str, content: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(content))
    return content[:place] + random_.choice([b"{", b'"', b"\x00", b"\xff"]) + content[place:]


# configurations


def key_forgotten(name: str, content: bytes, random_: random.Random) -> bytes:
    config = _config(name, content)
    section, key = _place(config, random_)
    del section[key]
    return _config_bytes(name, config)


def key_misspelt(name: str, content: bytes, random_: random.Random) -> bytes:
    config = _config(name, content)
    section, key = _place(config, random_)
    section[f"{key}x"] = section.pop(key)
    return _config_bytes(name, config)


def value_wrong(name: str, content: bytes, random_: random.Random) -> bytes:
    config = _config(name, content)
    section, key = _place(config, random_)
    fits = isinstance(section[key], bool)  # the other truth value is another valid file
    section[key] = random_.choice([v for v in WRONG if not (fits and isinstance(v, bool))])
    return _config_bytes(name, config)


def value_deep(name: str, content: bytes, random_: random.Random) -> bytes:
    config = _config(name, content)
    section, key = _place(config, random_)
    section[key] = "@"
    return _config_bytes(name, config).replace(b'"@"', b"[" * 60_000 + b"]" * 60_000)


def key_twice(_: str, content: bytes, random_: random.Random) -> bytes:
    config = json.loads(content)
    key = random_.choice(sorted(config))
    return content.replace(b"{", b"{" + f'"{key}": {random_.randrange(9)},'.encode(), 1)


def size_contradicted(name: str, content: bytes, random_: random.Random) -> bytes:
    """A size that is stated in two places, stated differently."""
    config = _config(name, content)
    sizes = ("d_in", "d_sae", "d_out", "num_latents", "activation_dim", "dict_size")
    for section in (config, config.get("trainer", {})):
        found = [key for key in sizes if section.get(key)]
        if found:
            section[random_.choice(found)] += random_.choice([-1, 1, 1000, 10**12])
            return _config_bytes(name, config)
    return content


def _place(config: dict[str, Any], random_: random.Random) -> tuple[dict[str, Any], str]:
    sections = [config, *(value for value in config.values() if isinstance(value, dict) and value)]
    section = random_.choice(sections)
    return section, random_.choice(sorted(section))


def _config(name: str, content: bytes) -> dict[str, Any]:
    return json.loads(content) if _kind(name) == ".json" else yaml.safe_load(content)


def _config_bytes(name: str, config: dict[str, Any]) -> bytes:
    if _kind(name) == ".json":
        return json.dumps(config).encode()
    return yaml.safe_dump(config).encode()


# tensors


def tensor_forgotten(tensors: dict[str, Any], random_: random.Random) -> None:
    # k is in config.json too, and a TopK's threshold is not used
    del tensors[_weight(tensors, random_, FORGETTABLE)]


def tensor_misspelt(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_)
    tensors[f"{name}x"] = tensors.pop(name)


def tensor_unknown(tensors: dict[str, Any], random_: random.Random) -> None:
    tensors[random_.choice(["junk", "W_gate", "scaling_factor2", "b_dec2"])] = torch.ones(3)


def tensor_transposed(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_, matrices=True)  # a square one looks the same turned over
    tensors[name] = tensors[name].transpose(0, 1).contiguous()


def tensor_cut(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_)
    tensors[name] = tensors[name][: random_.randrange(0, len(tensors[name]))].clone()


def tensor_reshaped(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_)
    shapes: list[Callable[[Tensor], Tensor]] = [
        lambda t: t[None],
        lambda t: t[..., None],
        lambda t: t.sum(),
        lambda t: t.repeat(*(2 for _ in t.shape)),
    ]
    tensors[name] = random_.choice(shapes)(tensors[name]).clone()


def tensor_not_finite(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_)
    flat = tensors[name].clone().reshape(-1)
    flat[random_.randrange(len(flat))] = random_.choice([float("nan"), float("inf")])
    tensors[name] = flat.reshape(tensors[name].shape)


def tensor_of_whole_numbers(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_)
    tensors[name] = tensors[name].to(random_.choice([torch.int32, torch.int64, torch.bool]))


def tensor_of_another_type(tensors: dict[str, Any], random_: random.Random) -> None:
    """The same numbers: golden weights fit any of these types."""
    dtype = random_.choice([torch.bfloat16, torch.float64])
    for name in _weights(tensors):
        tensors[name] = tensors[name].to(dtype)


def one_tensor_of_another_type(tensors: dict[str, Any], random_: random.Random) -> None:
    name = _weight(tensors, random_)
    tensors[name] = tensors[name].to(torch.float64)


def k_contradicted(tensors: dict[str, Any], random_: random.Random) -> None:
    if "k" in tensors:
        tensors["k"] = torch.tensor(random_.choice([0, -3, 5, 17, 10**9]), dtype=torch.int64)


def threshold_unset(tensors: dict[str, Any], random_: random.Random) -> None:
    threshold = tensors.get("threshold")
    if isinstance(threshold, Tensor) and threshold.ndim == 0 and threshold > 0:
        tensors["threshold"] = torch.tensor(random_.choice([-1.0, float("nan"), float("inf")]))


def groups_contradicted(tensors: dict[str, Any], random_: random.Random) -> None:
    if "group_sizes" in tensors:
        wrong = [[], [16, 1], [-1, 17], [0, 16], [15]]
        tensors["group_sizes"] = torch.tensor(random_.choice(wrong), dtype=torch.int64)


def _weights(tensors: dict[str, Any]) -> list[str]:
    return sorted(
        n
        for n, t in tensors.items()
        if isinstance(t, Tensor)
        and t.ndim > 0
        and n != "group_sizes"
        and "stats" not in n
        and "latents_" not in n
    )


def _weight(
    tensors: dict[str, Any],
    random_: random.Random,
    except_: set[str] | None = None,
    *,
    matrices: bool = False,
) -> str:
    names = [name for name in _weights(tensors) if name not in (except_ or set())]
    if matrices:
        names = [n for n in names if tensors[n].ndim == 2 and len(set(tensors[n].shape)) == 2]
    return random_.choice(names)


TENSOR_CHANGES = (
    *(tensor_forgotten, tensor_misspelt, tensor_unknown, tensor_transposed, tensor_cut),
    *(tensor_reshaped, tensor_not_finite, tensor_of_whole_numbers, tensor_of_another_type),
    *(one_tensor_of_another_type, k_contradicted, threshold_unset, groups_contradicted),
)


def tensors_changed(name: str, content: bytes, random_: random.Random) -> bytes:
    tensors = _tensors(name, content)
    change, before = random_.choice(TENSOR_CHANGES), dict(tensors)
    change(tensors, random_)
    unchanged = all(tensors.get(key) is value for key, value in before.items())
    return content if unchanged and len(tensors) == len(before) else _tensor_bytes(name, tensors)


def two_tensors_changed(name: str, content: bytes, random_: random.Random) -> bytes:
    tensors = _tensors(name, content)
    for change in (tensor_not_finite, random_.choice((tensor_unknown, tensor_of_another_type))):
        change(tensors, random_)
    return _tensor_bytes(name, tensors)


def _tensors(name: str, content: bytes) -> dict[str, Any]:
    if _kind(name) == ".safetensors":
        return load_safetensors(content)
    if _kind(name) == ".pt":
        return torch.load(io.BytesIO(content), weights_only=True)
    with np.load(io.BytesIO(content)) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _tensor_bytes(name: str, tensors: dict[str, Any]) -> bytes:
    if _kind(name) == ".safetensors":
        return save_safetensors(tensors)
    buffer = io.BytesIO()
    if _kind(name) == ".pt":
        torch.save(tensors, buffer)
    else:  # numpy has no bfloat16
        arrays = {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in tensors.items()}
        np.savez(buffer, **{n: t.numpy() for n, t in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


# claims


def huge_claim(name: str, content: bytes, random_: random.Random) -> bytes:
    """A file that claims far more than it holds."""
    if _kind(name) == ".safetensors":
        return _huge_safetensors(content, random_)
    if _kind(name) == ".npz":
        return _huge_npz(content, random_)
    tensors = _tensors(name, content)
    key = _weight(tensors, random_)
    shape = (random_.choice([10**7, 10**11]), 10**7)
    tensors[key] = torch.ones(1, 1).expand(*shape)
    return _tensor_bytes(name, tensors)


def _huge_safetensors(content: bytes, random_: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    key = random_.choice(sorted(name for name in header if name != "__metadata__"))
    choice = random_.randrange(3)
    if choice == 0:
        return struct.pack("<Q", random_.choice([2**40, 2**63, 2**64 - 1])) + content[8:]
    if choice == 1:
        header[key]["shape"] = [2**33, 2**30]
    else:
        header[key]["data_offsets"] = [0, 2**45]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _huge_npz(content: bytes, random_: random.Random) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = random_.choice(old.namelist())
        for entry in old.namelist():
            data = old.read(entry)
            if entry == chosen:
                before = len(data)
                old_shape, new_shape = data[:128], data[:128]
                start = old_shape.index(b"'shape': (") + len(b"'shape': (")
                end = old_shape.index(b")", start)
                claim = b"99999999999, 99999999"
                rest = old_shape[end:].rstrip(b" \n")
                new_shape = (old_shape[:start] + claim + rest).ljust(127) + b"\n"
                data = new_shape + data[128:]
                assert len(data) == before
            new.writestr(entry, data)
    return buffer.getvalue()


class Command:
    """What a pickle must never get to run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("this was run",))


def code(name: str, content: bytes, random_: random.Random) -> bytes:
    """A pickle that would call something."""
    if random_.random() < 0.3:
        return pickle.dumps(Command())
    buffer = io.BytesIO()
    if _kind(name) == ".npz":
        np.savez(buffer, W_enc=np.array([Command()], dtype=object))
        return buffer.getvalue()
    tensors = _tensors(name, content)
    tensors[random_.choice([*tensors, "more"])] = Command()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def not_a_dictionary(_: str, content: bytes, random_: random.Random) -> bytes:
    values: list[Any] = [[torch.ones(2)], torch.ones(2), "text", 3, {1: torch.ones(2)}, None]
    buffer = io.BytesIO()
    torch.save(random_.choice(values), buffer)
    return buffer.getvalue() or content


Change = Callable[[str, bytes, random.Random], bytes | None]
CONFIGS, TENSORS = {".json", ".yaml"}, {".safetensors", ".pt", ".npz"}
KINDS: dict[Change, set[str]] = {
    missing: CONFIGS | TENSORS,
    empty: CONFIGS | TENSORS,
    truncated: {".json"} | TENSORS,
    longer: CONFIGS | {".safetensors"},
    noise: CONFIGS | TENSORS,
    broken_header: {".safetensors"},
    broken_byte: {".pt", ".npz"},
    inserted: {".json"},
    key_forgotten: CONFIGS,
    key_misspelt: CONFIGS,
    value_wrong: CONFIGS,
    value_deep: {".json"},
    key_twice: {".json"},
    size_contradicted: {".json"},
    tensors_changed: TENSORS,
    two_tensors_changed: TENSORS,
    huge_claim: TENSORS,
    code: {".pt", ".npz"},
    not_a_dictionary: {".pt"},
}
CHANGES = (*KINDS, value_wrong, key_forgotten, *([tensors_changed] * 6))
"""Every way, the roomy ones more often."""
