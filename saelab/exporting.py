"""How does a dictionary leave saelab? As files that another library reads."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from saelab.dictionary_files import WEIGHTS_FILE
from saelab.errors import FormatError
from saelab.files import write_bytes
from saelab.sae import SAE

__all__ = ["FORMATS", "export"]


def export(sae: SAE, folder: str | Path, format: str = "saelens") -> list[Path]:
    """Write a dictionary in another library's format.

    Args:
        sae: The dictionary.
        folder: Where the files go; files of the same names are replaced.
        format: A key of `FORMATS`.

    Returns:
        The files written.

    Raises:
        FormatError: There is no such format, or it cannot express this dictionary exactly.
    """
    if format not in FORMATS:
        raise FormatError(
            f"There is no export format {format!r}. There is {', '.join(sorted(FORMATS))}."
        )
    return FORMATS[format](sae, Path(folder))


def _saelens(sae: SAE, folder: Path) -> list[Path]:
    """The SAELens 6 folder: cfg.json and folded weights, which `SAE.save` writes too."""
    with tempfile.TemporaryDirectory() as work:
        sae.save(work)
        files = {name: (Path(work) / name).read_bytes() for name in ("cfg.json", WEIGHTS_FILE)}
    architecture = json.loads(files["cfg.json"])["architecture"]
    if architecture.startswith("saelab"):
        raise FormatError(
            f"SAELens has no dictionary with the activation function {sae.activation}, so this one "
            "cannot be expressed exactly. Keep it in saelab's own format."
        )
    for name, content in files.items():
        write_bytes(folder / name, content)
    return [folder / name for name in files]


FORMATS: dict[str, Callable[[SAE, Path], list[Path]]] = {"saelens": _saelens}
"""What can be written, by name."""
