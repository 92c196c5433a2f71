"""Everyone's formats: read what other libraries wrote, and write what they read.

    sae = saelab.formats.read("downloads/gpt2-small-res-jb/blocks.8.hook_resid_pre")
    saelab.export(sae, "for-a-friend", format="dictionary_learning")

A dictionary that comes in computes what its own library computes with it, or is refused with the
reason; the same holds on the way out. docs/formats.md has the table, each cell with its test.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from saelab.errors import FormatError
from saelab.files import sha256_of, write_bytes
from saelab.formats.base import Asked, Format
from saelab.formats.circuit_tracer import CIRCUIT_TRACER, layers_in
from saelab.formats.cross_layer import CrossLayerWeights, read_cross_layer, write_cross_layer
from saelab.formats.dictionary_learning import DICTIONARY_LEARNING
from saelab.formats.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2
from saelab.formats.openai import OPENAI
from saelab.formats.parts import build, parts_of
from saelab.formats.saelens import SAELENS
from saelab.formats.sparsify import SPARSIFY
from saelab.sae import SAE

__all__ = [
    "FORMATS",
    "CrossLayerWeights",
    "Format",
    "detect",
    "export",
    "read",
    "read_cross_layer",
    "read_set",
    "write",
    "write_cross_layer",
]

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        SAELENS,
        DICTIONARY_LEARNING,
        SPARSIFY,
        CIRCUIT_TRACER,
        GEMMA_SCOPE,
        GEMMA_SCOPE_2,
        OPENAI,
    )
}
"""Every foreign format by name."""
OWN = "saelab"
"""Our own dictionaries, which `SAE.save` writes and `SAE.load` reads with their checksums."""
HASHED_BYTES = 1 << 30
"""Larger files are recorded by size alone: reading them a second time would take too long."""


def read(
    path: str | Path,
    format: str = "auto",
    *,
    hook: str | None = None,
    hook_out: str | None = None,
    layer: int | None = None,
    input_scale: int | float | None = None,
    ignore: Collection[str] = (),
    dtype: torch.dtype | None = None,
) -> SAE:
    """Read a dictionary that any of the known libraries wrote.

    Weights in float16 or bfloat16 become float32, which changes none of them.

    Args:
        path: A folder, or its weights file.
        format: A key of `FORMATS`, "saelab", or "auto" to tell it from the names of the files.
        hook: Hook point it reads, where the files do not say; overrules them where they do.
        hook_out: Hook point it writes, of a transcoder.
        layer: Which layer, where the folder holds one dictionary for each.
        input_scale: What the activations are multiplied by before encoding, where the files say
            that they are and not by how much.
        ignore: Unknown keys of its configuration that you have checked to change no number.
        dtype: Type of the weights; float32 (or float64, if they are) if not given.

    Returns:
        A dictionary that computes what the library computes with these files.

    Raises:
        FormatError: The files are missing, damaged, contradictory, ambiguous, or mean something
            that saelab does not compute.
        CheckpointError: One of our own dictionaries is damaged.
    """
    path = Path(path).expanduser()
    name = detect(path) if format == "auto" else format
    if name == OWN:
        sae = SAE.load(path)
    else:
        form = _known(name)
        asked = Asked(
            hook=hook,
            hook_out=hook_out,
            layer=layer,
            input_scale=None if input_scale is None else float(input_scale),
            ignore=frozenset(ignore),
        )
        if not path.exists():
            raise FormatError(f"There is no file or folder {path}.")
        sae = _imported(form, path, asked)
    return sae if dtype is None else sae.to(dtype)


def read_set(
    path: str | Path, format: str = "auto", *, ignore: Collection[str] = ()
) -> dict[int, SAE]:
    """Read every layer of a folder that holds one dictionary for each, such as circuit-tracer's.

    Raises:
        FormatError: As for `read`, or the format has one dictionary a folder.
    """
    path = Path(path).expanduser()
    name = detect(path) if format == "auto" else format
    if name != CIRCUIT_TRACER.name:
        raise FormatError(f"A {name} folder holds one dictionary; use read({str(path)!r}).")
    if not path.is_dir():
        raise FormatError(f"There is no folder {path}.")
    return {layer: read(path, name, layer=layer, ignore=ignore) for layer in layers_in(path)}


def detect(path: str | Path) -> str:
    """Tell the format from the names of the files.

    Returns:
        A key of `FORMATS`, or "saelab".

    Raises:
        FormatError: None fits, or more than one does.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"There is no file or folder {path}.")
    if (path / "saelab.json").exists():
        return OWN
    found = [form.name for form in FORMATS.values() if form.recognizes(path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatError(
            f"{path} could be {' or '.join(found)}, which are not read alike. Say which: "
            f"format={found[0]!r} (--format {found[0]})."
        )
    listed = "; ".join(f"{form.name}: {form.files}" for form in FORMATS.values())
    inside = _folders_inside(path)
    raise FormatError(
        f"{path} is not of a known format. There is {listed}."
        + (f" One of its folders may be: {', '.join(inside)}." if inside else "")
    )


def export(sae: SAE | Sequence[SAE], folder: str | Path, format: str = "saelens") -> list[Path]:
    """Write a dictionary in another library's format; nothing is written if it does not fit.

    Args:
        sae: The dictionary; for circuit-tracer, the transcoders of every layer.
        folder: Where the files go; files of the same names are replaced.
        format: A key of `FORMATS`.

    Returns:
        The files written.

    Raises:
        FormatError: There is no such format, or it cannot express this dictionary exactly.
    """
    form = _known(format, writing=True)
    dictionaries = [sae] if isinstance(sae, SAE) else list(sae)
    if len(dictionaries) != 1 and format != CIRCUIT_TRACER.name:
        raise FormatError(
            f"A {format} folder holds one dictionary; {len(dictionaries)} were given. Export each "
            "to a folder of its own."
        )
    if not dictionaries or form.write is None:
        raise FormatError(f"There is nothing to write as {format}.")
    files = form.write([parts_of(each) for each in dictionaries])
    for name, content in files.items():
        write_bytes(Path(folder) / name, content)
    return [Path(folder) / name for name in files]


write = export


def _imported(form: Format, path: Path, asked: Asked) -> SAE:
    parts = form.read(path, asked)
    metadata = {
        "model": {"name": parts.model},
        "imported": {
            "format": form.name,
            "from": str(path),
            "files": _files(path),
            "recorded": parts.recorded,
            "notes": parts.notes,
        },
    }
    return build(parts, str(path), metadata)


def _known(name: str, *, writing: bool = False) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    what = "export format" if writing else "format"
    raise FormatError(f"There is no {what} {name!r}. There is {', '.join(sorted(FORMATS))}.")


def _folders_inside(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    folders = [inside for inside in sorted(path.iterdir()) if inside.is_dir()]
    fits = [f.name for f in folders if any(form.recognizes(f) for form in FORMATS.values())]
    return fits[:8]


def _files(path: Path) -> dict[str, str]:
    """What was read: SHA-256 by name, so that it can be told apart later."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    return {
        file.name: sha256_of(file)
        if file.stat().st_size <= HASHED_BYTES
        else f"{file.stat().st_size} bytes"
        for file in files
    }
