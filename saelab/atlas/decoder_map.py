"""Which latents point alike? A map of the decoder directions of every latent that fires.

    make_map(atlas, MapConfig(method="umap"))     # or: saelab map runs/topk

- umap: near on the map are those near in direction; distances across it mean little. The nearest
  directions are found exactly, so only the layout is drawn by chance, from the seed.
- pca: the two directions along which the unit decoder directions differ most.

In a signed dictionary an opposite direction says the same: nearness is |cosine|, and each
direction is taken with the sign of its heavier side, so turning a latent around moves nothing.

Source: McInnes, Healy & Melville 2018 (UMAP).
"""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.atlas.directions import nearest
from saelab.atlas.manifest import MANIFEST, WORK, key_of, read_manifest
from saelab.atlas.parquet import table_of, write_table
from saelab.errors import CheckpointError, ConfigError
from saelab.files import folder_lock, read_tensors, write_json, write_tensors
from saelab.models.identity import hash_of_tensors

if TYPE_CHECKING:
    from saelab.atlas.opened import Atlas

__all__ = ["MapConfig", "make_map"]

TABLE = "decoder_map"
LATENTS_AT_ONCE = 4096
"""Whose neighbors are found between two files: what an interruption costs at most."""
FEWEST = 4
"""With fewer latents there are no neighborhoods to draw."""


@final
@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """How a map is made; the same configuration always gives the same map.

    >>> MapConfig(method="pca").describe()
    'PCA of the unit decoder directions'
    """

    method: Literal["umap", "pca"] = "umap"
    """umap keeps neighborhoods together and needs the package umap-learn; pca is plain."""
    n_neighbors: int = 15
    """UMAP: nearest directions, itself included, that a latent is kept near to."""
    min_dist: float = 0.1
    """UMAP: how close points may come; smaller packs neighborhoods tighter."""
    seed: int = 0
    """UMAP: draws the layout."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.method not in ("umap", "pca"):
            raise ConfigError(f"MapConfig(method={self.method!r}): there are umap and pca.")
        if self.n_neighbors < 2:
            raise ConfigError(f"MapConfig(n_neighbors={self.n_neighbors}): it must be at least 2.")
        if not 0 <= self.min_dist <= 1:
            raise ConfigError(f"MapConfig(min_dist={self.min_dist}): it must be from 0 to 1.")

    def describe(self) -> str:
        """In a few words, for a caption."""
        if self.method == "pca":
            return "PCA of the unit decoder directions"
        return (
            f"UMAP of the decoder directions by cosine ({self.n_neighbors} neighbors, "
            f"min_dist {self.min_dist:g}, seed {self.seed})"
        )


def make_map(
    atlas: "Atlas",
    config: MapConfig | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> "Atlas":
    """Make the map of an atlas, in place of an older one; only the atlas's own files are read.

    Call it again after an interruption and it goes on; with the same settings on a map that is
    there, it only opens the atlas.

    Args:
        atlas: Of which the map is.
        config: How; the defaults if None.
        progress: Called with (latents done, in all, what).

    Returns:
        The atlas, opened anew, with the map.

    Raises:
        ConfigError: umap-learn is not installed, or fewer than 4 latents fire.
        FolderBusyError: Another process is writing the folder.
    """
    from saelab.atlas.opened import Atlas

    config, folder = config or MapConfig(), atlas.folder
    if config.method == "umap":
        _umap()
    with folder_lock(folder):
        manifest = read_manifest(folder)
        if manifest.get("map", {}).get("config") != asdict(config):
            latents, unit = _directions(atlas)
            points, notes = _placed(unit, atlas, config, progress)
            columns = {"latent": latents, "x": points[:, 0], "y": points[:, 1]}
            path = folder / f"{TABLE}.parquet"
            manifest["files"][path.name] = write_table(path, table_of(TABLE, columns))
            manifest["map"] = {"config": asdict(config), "describe": config.describe(), **notes}
            write_json(folder / MANIFEST, manifest)
        shutil.rmtree(folder / WORK / "map", ignore_errors=True)
    return Atlas.open(folder)


def _directions(atlas: "Atlas") -> tuple[Int[Tensor, " alive"], Float[Tensor, "alive d_out"]]:
    """The latents that fire, and their unit directions with the sign of their heavier side."""
    rows = atlas.sql(
        "SELECT latent, (count_neg, -min) > (count_pos, max) AS turned FROM latents "
        "WHERE count > 0 ORDER BY latent"
    )
    if len(rows) < FEWEST:
        raise ConfigError(
            f"{len(rows)} latents fire in {atlas.folder}; a map needs at least {FEWEST}."
        )
    latents = torch.tensor(rows["latent"].tolist())
    turn = 1 - 2 * torch.tensor(rows["turned"].tolist()).float()
    unit = torch.nn.functional.normalize(atlas.directions()[latents], dim=1)
    return latents, unit * (turn[:, None] if atlas.signed else 1)


def _placed(
    unit: Float[Tensor, "alive d_out"],
    atlas: "Atlas",
    config: MapConfig,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Float[Tensor, "alive 2"], dict[str, Any]]:
    """Where each latent goes, from -1 to 1, and what else is to be known of the map."""
    points, explained = _principal(unit)
    if config.method == "pca":
        return _framed(points), {"explained": explained}
    n = min(config.n_neighbors, len(unit))
    other, cosine = _neighbors(unit, n - 1, atlas, progress)
    if progress is not None:
        progress(len(unit), len(unit), "drawing the map")
    laid = _laid_out(unit, _framed(points), (other, cosine), config)
    versions = {name: metadata.version(name) for name in ("umap-learn", "numba")}
    return _framed(laid), {"versions": versions}


def _principal(unit: Float[Tensor, "alive d"]) -> tuple[Float[Tensor, "alive 2"], float]:
    """The first two principal components, and the share of the variance that they hold."""
    centered = (unit - unit.mean(0)).double()
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    points = centered @ vectors[:, -2:].flip(1)
    # Which way an eigenvector points is arbitrary: the longer tail goes right, and up.
    points = points * torch.where(points.pow(3).sum(0) < 0, -1.0, 1.0)
    return points.float(), float(values[-2:].sum() / values.sum().clamp_min(1e-30))


def _framed(points: Float[Tensor, "alive 2"]) -> Float[Tensor, "alive 2"]:
    """Centered in a square from -1 to 1, one scale for both axes."""
    low, high = points.amin(0), points.amax(0)
    return 2 * (points - (low + high) / 2) / (high - low).max().clamp_min(1e-30)


def _neighbors(
    unit: Float[Tensor, "alive d"],
    n: int,
    atlas: "Atlas",
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Int[Tensor, "alive n"], Float[Tensor, "alive n"]]:
    """The nearest other directions of every latent and how near they are, in parts kept on disk."""
    key = key_of({"unit": hash_of_tensors({"unit": unit}), "n": n})
    parts = []
    for first in range(0, len(unit), LATENTS_AT_ONCE):
        if progress is not None:
            progress(first, len(unit), "nearest directions")
        rows = torch.arange(first, min(len(unit), first + LATENTS_AT_ONCE))
        parts.append(_part(atlas.folder / WORK / "map" / f"{key}-{first:08d}.safetensors",
                           unit, rows, n, atlas.signed))  # fmt: skip
    cosine = torch.cat([one for _, one in parts])
    return torch.cat([one for one, _ in parts]), cosine.abs() if atlas.signed else cosine


def _part(
    path: Path, unit: Tensor, rows: Tensor, n: int, signed: bool
) -> tuple[Int[Tensor, "row n"], Float[Tensor, "row n"]]:
    if path.exists():
        try:
            found = read_tensors(path)
            return found["other"], found["cosine"]
        except CheckpointError:  # half of it, or another file: it is made again
            path.unlink()
    other, cosine = nearest(unit, rows, n, by_size=signed)
    write_tensors(path, {"other": other, "cosine": cosine})
    return other, cosine


def _laid_out(
    unit: Float[Tensor, "alive d"],
    start: Float[Tensor, "alive 2"],
    neighbors: tuple[Int[Tensor, "alive n"], Float[Tensor, "alive n"]],
    config: MapConfig,
) -> Float[Tensor, "alive 2"]:
    other, cosine = neighbors
    itself = torch.arange(len(unit))[:, None]
    indices = torch.cat([itself, other], dim=1)
    distances = torch.cat([torch.zeros(len(unit), 1), (1 - cosine).clamp_min(0)], dim=1)
    layout = _umap().UMAP(
        n_neighbors=indices.shape[1],
        min_dist=config.min_dist,
        metric="cosine",
        random_state=config.seed,
        n_jobs=1,  # what the seed gives must not depend on how threads race
        init=10 * start.numpy(),
        precomputed_knn=(indices.numpy(), distances.numpy()),
        force_approximation_algorithm=True,
    )
    with warnings.catch_warnings():  # it tells that new points cannot be placed, which none are
        warnings.simplefilter("ignore")
        return torch.from_numpy(layout.fit_transform(unit.numpy())).float()


def _umap() -> Any:
    try:
        return import_module("umap")
    except ImportError as error:
        raise ConfigError(
            f"A UMAP map needs the package umap-learn, which is not installed ({error}). Install "
            "it with: pip install 'saelab[map]'. Or make a plain one: saelab map RUN --method pca"
        ) from None
