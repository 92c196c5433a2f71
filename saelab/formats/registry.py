"""Which public dictionaries are known by name, and where are they?

The file known_dictionaries.yaml, and any of the user's own, follow the schema of SAELens's
pretrained_saes.yaml, so that SAELens's whole list can be used too.
"""

import functools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final

from saelab.errors import FormatError
from saelab.formats.foreign import yaml_of

__all__ = ["KNOWN_FILE", "KnownDictionary", "find", "releases"]

KNOWN_FILE = Path(__file__).with_name("known_dictionaries.yaml")
_CONVERSIONS = {
    None: "saelens",
    "sae_lens": "saelens",
    "dictionary_learning_1": "dictionary_learning",
    "sparsify": "sparsify",
    "gemma_2": "gemma-scope",
    "gemma_2_transcoder": "gemma-scope",
    "gemma_3": "gemma-scope-2",
    "mwhanna_transcoder": "circuit-tracer",
}
"""SAELens's names of layouts, and ours."""
_HARMLESS = {"dataset_path", "model_from_pretrained_kwargs", "model_name", "hook_name", "device"}
"""Overrides that change no number."""


@final
@dataclass(frozen=True, kw_only=True)
class KnownDictionary:
    """One entry: where it is, and how it is read."""

    release: str
    """Name of the release."""
    sae_id: str
    """Name within the release."""
    repo_id: str
    """Repository on the hub."""
    path: str
    """Folder or file in the repository."""
    format: str
    """A key of `saelab.formats.FORMATS`."""
    model: str | None
    """What it was trained on."""
    hook: str | None
    """Hook point, where the entry overrules the files."""
    input_scale: float | None
    """norm_scaling_factor: what the activations are multiplied by."""
    recorded: dict[str, float]
    """l0 and explained_variance, as published."""
    model_settings: dict[str, Any]
    """How the model was loaded when it was trained, where that changes its activations."""

    @property
    def files(self) -> list[str]:
        """Patterns of the files that are needed."""
        inside = {
            "saelens": ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors"),
            "dictionary_learning": ("ae.pt", "config.json"),
            "sparsify": ("cfg.json", "sae.safetensors"),
            "gemma-scope": ("params.npz",),
            "gemma-scope-2": ("params.safetensors", "config.json"),
        }.get(self.format)
        if inside is None:  # one file, and a configuration for all
            above = PurePosixPath(self.path).parent
            return [self.path, str(above / "config.yaml")]
        return [f"{self.path}/{name}" for name in inside]


def releases(registry: str | Path | None = None) -> dict[str, Any]:
    """Every release of the registry file, or of ours.

    Raises:
        FormatError: The file is missing or not in the schema.
    """
    path = KNOWN_FILE if registry is None else Path(registry).expanduser()
    return _releases(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=4)  # parsing a long list takes longer than anything else here
def _releases(path: Path, _: int) -> dict[str, Any]:
    found = yaml_of(path)
    for name, release in found.items():
        good = isinstance(release, dict) and isinstance(release.get("saes"), list)
        if not good or not isinstance(release.get("repo_id"), str):
            raise FormatError(f"{path}: {name!r} needs repo_id and saes, a list of id and path.")
    return found


def find(name: str, registry: str | Path | None = None) -> KnownDictionary:
    """The entry that "RELEASE/ID" names, in the user's registry first, then in ours.

    Raises:
        FormatError: There is none; the message offers the nearest names. Or saelab cannot read
            its layout.
    """
    release, _, sae_id = name.partition("/")
    files = [KNOWN_FILE] if registry is None else [Path(registry).expanduser(), KNOWN_FILE]
    known: dict[str, Any] = {}
    for path in files:
        found = releases(path)
        known = {**found, **known}
        if release in found and (entry := _entry(found[release], sae_id)):
            return _known(release, sae_id, found[release], entry, path)
    raise FormatError(_unknown(release, sae_id, known))


def _entry(release: dict[str, Any], sae_id: str) -> dict[str, Any] | None:
    entries = [each for each in release["saes"] if isinstance(each, dict)]
    return next((each for each in entries if str(each.get("id")) == sae_id), None)


def _known(
    release: str, sae_id: str, about: dict[str, Any], entry: dict[str, Any], origin: Path
) -> KnownDictionary:
    overrides = about.get("config_overrides") or {}
    if changing := sorted(set(overrides) - _HARMLESS):
        raise FormatError(
            f"{origin}: {release} overrules {', '.join(changing)} of its files, which changes what "
            "they compute; saelab reads files as they are."
        )
    form = about.get("format") or _CONVERSIONS.get(about.get("conversion_func"))
    if form is None:
        raise FormatError(
            f"{origin}: {release} is in the layout {about['conversion_func']!r}, which saelab does "
            f"not read. It reads {', '.join(str(c) for c in _CONVERSIONS if c)}."
        )
    path = str(entry.get("path", sae_id))
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise FormatError(
            f"{origin}: {release}/{sae_id} has the path {path!r}, outside its repository."
        )
    scale = entry.get("norm_scaling_factor")
    numbers = {"l0": entry.get("l0"), "explained_variance": entry.get("variance_explained")}
    return KnownDictionary(
        release=release,
        sae_id=sae_id,
        repo_id=about["repo_id"],
        path=path,
        format=form,
        model=about.get("model"),
        hook=overrides.get("hook_name"),
        input_scale=None if scale is None else float(scale),
        recorded={key: float(value) for key, value in numbers.items() if value is not None},
        model_settings=overrides.get("model_from_pretrained_kwargs") or {},
    )


def _unknown(release: str, sae_id: str, known: dict[str, Any]) -> str:
    import difflib

    if release not in known:
        near = difflib.get_close_matches(release, known, n=3, cutoff=0.5) or sorted(known)
        return (
            f"There is no file or folder {release}/{sae_id}, and no release {release!r} is known. "
            f"There is {', '.join(near)}. Another list can be given: --registry FILE."
        )
    ids = [str(each.get("id")) for each in known[release]["saes"] if isinstance(each, dict)]
    near = difflib.get_close_matches(sae_id, ids, n=3, cutoff=0.3) or ids[:5]
    return (
        f"The release {release} has {len(ids)} dictionaries, and {sae_id!r} is not among them. "
        f"There is {', '.join(near)}{', ...' if len(ids) > len(near) else ''}."
    )
