"""A survey as it lies on disk, and as a page opens it.

geometry.json         what it is about, its settings, and the SHA-256 of the other two
numbers.json          every number with the draws of its null
latents.safetensors   lobe and region of each latent, and the parents of a tree
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.effective_dimension import Dimensions
from saelab.errors import CheckpointError
from saelab.files import (
    folder_lock,
    provenance,
    read_json,
    read_tensors,
    sha256_of,
    write_json,
    write_tensors,
)
from saelab.geometry.galaxy import Galaxy, PowerLaw
from saelab.geometry.nulls import AgainstNull
from saelab.geometry.parallelograms import Parallelograms
from saelab.geometry_survey.families import SplitFamily, TreeFamily
from saelab.geometry_survey.lobes import LobeLevel
from saelab.geometry_survey.words import WordCrystals

__all__ = ["FOLDER", "GeometrySurvey"]

FOLDER = "geometry"
"""Where a survey lies in a run folder."""
FORMAT_VERSION = 1
MANIFEST, NUMBERS, LATENTS = "geometry.json", "numbers.json", "latents.safetensors"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GeometrySurvey:
    """The geometry of one dictionary."""

    about: Mapping[str, Any]
    """dictionary, hook, model, corpus, d_sae, d_out, signed, n_alive, n_tokens, n_chunks,
    chunk_tokens, config, weights (a hash): JSON-able."""
    galaxy: Galaxy
    """The cloud of the directions of latents that fire."""
    pairs: Mapping[str, AgainstNull]
    """Numbers about pairs of directions, by name."""
    parallelograms: Parallelograms
    """Quadruples of latents; corners are numbers of latents."""
    parallel_share: AgainstNull
    """Share of differences of neighbors that are in a parallel class of three or more."""
    levels: Mapping[int, LobeLevel]
    """Lobes, by how many were asked for; those that the text was enough for."""
    words: WordCrystals | None
    """Pairs of words; None where they were not measured."""
    words_missing: str
    """Why not."""
    splits: Mapping[str, SplitFamily]
    """How latents split, by the wider run's folder relative to this one's."""
    tree: TreeFamily | None
    """Of a Matryoshka dictionary."""

    def lobes_of(self, n_lobes: int) -> Int[Tensor, " d_sae"]:
        """The lobe of every latent of the dictionary; -1 for those that were not clustered."""
        return self._spread(n_lobes, "of")

    def regions_of(self, n_lobes: int) -> Int[Tensor, " d_sae"]:
        """The same by the angle of the directions."""
        return self._spread(n_lobes, "regions")

    def with_split(self, family: SplitFamily) -> "GeometrySurvey":
        """The same with one more family, or with that of the same name replaced."""
        return replace(self, splits={**self.splits, family.wider: family})

    def save(self, folder: str | Path) -> Path:
        """Write it, atomically file by file, the manifest last.

        Raises:
            FolderBusyError: Another process is writing the folder.
            DiskFullError: There is no room.
        """
        folder = Path(folder)
        with folder_lock(folder):
            (folder / MANIFEST).unlink(missing_ok=True)  # it is about files that now change
            files = {
                NUMBERS: write_json(folder / NUMBERS, self._numbers()),
                LATENTS: write_tensors(folder / LATENTS, self._tensors()),
            }
            manifest = {
                "format_version": FORMAT_VERSION,
                "about": dict(self.about),
                "files": files,
                "provenance": provenance(),
            }
            write_json(folder / MANIFEST, manifest)
        return folder

    @classmethod
    def open(cls, folder: str | Path) -> "GeometrySurvey":
        """Open what `save` wrote.

        Raises:
            CheckpointError: A file is missing, truncated, altered, or of a newer format.
        """
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST, "a survey (make one with: saelab geometry RUN)")
        if (version := manifest.get("format_version")) != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder / MANIFEST} has format version {version}; this saelab reads "
                f"{FORMAT_VERSION}. Make it again: saelab geometry RUN --again"
            )
        files = manifest.get("files") or {}
        path = folder / NUMBERS
        if not path.exists() or sha256_of(path) != files.get(NUMBERS):
            raise CheckpointError(
                f"{path} is not the file that was written (missing, truncated or altered). Make "
                "it again: saelab geometry RUN --again"
            )
        tensors = read_tensors(folder / LATENTS, str(files.get(LATENTS)))
        try:
            return cls._of(manifest["about"], json.loads(path.read_text("utf-8")), tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder} lacks a part or holds another ({error}). Make it again: "
                "saelab geometry RUN --again"
            ) from None

    @classmethod
    def _of(
        cls, about: dict[str, Any], numbers: dict[str, Any], tensors: dict[str, Tensor]
    ) -> "GeometrySurvey":
        levels = {
            int(name): LobeLevel.from_json(
                value, *(tensors[f"{part}_{name}"].long() for part in ("latents", "of", "regions"))
            )
            for name, value in numbers["levels"].items()
        }
        words, tree = numbers["words"], numbers["tree"]
        if tree is not None:
            tree = TreeFamily(
                prefixes=tuple(map(int, tree["prefixes"])),
                candidates=int(tree["candidates"]),
                orphan_rate=float(tree["orphan_rate"]),
                orphan_rate_null=float(tree["orphan_rate_null"]),
                parent=tensors["parent"].long(),
                score=tensors["score"],
            )
        return cls(
            about=about,
            galaxy=_galaxy(numbers["galaxy"]),
            pairs={n: AgainstNull.from_json(one) for n, one in numbers["pairs"].items()},
            parallelograms=Parallelograms.from_json(numbers["parallelograms"]),
            parallel_share=AgainstNull.from_json(numbers["parallel_share"]),
            levels=levels,
            words=None if words is None else WordCrystals.from_json(words),
            words_missing=str(numbers["words_missing"]),
            splits={n: SplitFamily.from_json(one) for n, one in numbers["splits"].items()},
            tree=tree,
        )

    def _numbers(self) -> dict[str, Any]:
        return {
            "galaxy": self.galaxy.to_json(),
            "pairs": {name: one.to_json() for name, one in self.pairs.items()},
            "parallelograms": self.parallelograms.to_json(),
            "parallel_share": self.parallel_share.to_json(),
            "levels": {str(n): level.to_json() for n, level in self.levels.items()},
            "words": None if self.words is None else self.words.to_json(),
            "words_missing": self.words_missing,
            "splits": {name: one.to_json() for name, one in self.splits.items()},
            "tree": None if self.tree is None else self.tree.to_json(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        found = {"d_sae": torch.tensor([self.about["d_sae"]])}
        for n, level in self.levels.items():
            found[f"latents_{n}"] = level.latents.to(torch.int32)
            found[f"of_{n}"] = level.of.to(torch.int16)
            found[f"regions_{n}"] = level.regions.to(torch.int16)
        if self.tree is not None:
            found |= {"parent": self.tree.parent.to(torch.int32), "score": self.tree.score.float()}
        return found

    def _spread(self, n_lobes: int, part: str) -> Int[Tensor, " d_sae"]:
        level = self.levels[n_lobes]
        found = torch.full((int(self.about["d_sae"]),), -1)
        found[level.latents] = getattr(level, part)
        return found


def _galaxy(value: Mapping[str, Any]) -> Galaxy:
    law = {**value["law"], "ranks": tuple(value["law"]["ranks"])}
    return Galaxy(
        n_latents=int(value["n_latents"]),
        d=int(value["d"]),
        spectrum=tuple(value["spectrum"]),
        null_spectrum=tuple(value["null_spectrum"]),
        law=PowerLaw(**law),
        steepness=AgainstNull.from_json(value["steepness"]),
        clustering=AgainstNull.from_json(value["clustering"]),
        dimensions=Dimensions(**value["dimensions"]),
        null_dimensions=Dimensions(**value["null_dimensions"]),
    )
