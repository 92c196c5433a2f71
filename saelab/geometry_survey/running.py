"""Survey a run: read its activations once, measure all parts, and keep them in its folder."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from saelab.errors import DataError, StoreError
from saelab.files import read_json
from saelab.geometry.affinities import ChunkCounts, chunks_of
from saelab.geometry.galaxy import galaxy
from saelab.geometry.lobes import spatial_modularity
from saelab.geometry.nulls import AgainstNull
from saelab.geometry.orthogonality import alignment, coherence
from saelab.geometry.parallelograms import Parallelograms, parallelograms
from saelab.geometry.parallels import difference_classes
from saelab.geometry.trees import latent_tree
from saelab.geometry_survey.config import SurveyConfig
from saelab.geometry_survey.families import TreeFamily, split_family
from saelab.geometry_survey.lobes import LobeLevel, Places, level_of
from saelab.geometry_survey.reading import SurveyedText, chunk_tokens_of, places_of, read_text
from saelab.geometry_survey.saved import FOLDER, MANIFEST, GeometrySurvey
from saelab.geometry_survey.words import WordCrystals, word_crystals
from saelab.models import LanguageModel, load_model
from saelab.models.identity import hash_of_tensors
from saelab.objectives import Matryoshka
from saelab.run_folders import HarvestSource, dictionary_of, store_of
from saelab.sae import SAE

__all__ = ["survey_run"]

Progress = Callable[[int, int, str], None]


def survey_run(
    run: str | Path,
    config: SurveyConfig | None = None,
    *,
    wider: Sequence[str | Path] = (),
    model: LanguageModel | None = None,
    store: str | Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> GeometrySurvey:
    """Measure the geometry of a run's dictionary and keep it in RUN/geometry.

    A survey of the same dictionary with the same settings that is there already is only opened;
    families that it lacks are added to it.

    Args:
        run: Folder of a finished run.
        config: How; the defaults if None.
        wider: Wider runs of the same hook point, to find families in.
        model: Reads the pairs of words; the model of the run's harvest by default.
        store: Activations, if not those the run was trained on.
        again: Measure anew whatever is there.
        progress: Called with (steps done, steps in all, what).

    Raises:
        CheckpointError: The run has no dictionary, or its store is gone.
        DataError: A run that should be wider is not, or reads another width.
    """
    run, config = Path(run), config or SurveyConfig()
    sae = dictionary_of(run)
    folder = Path(store) if store is not None else store_of(run)
    weights = hash_of_tensors(dict(sae.state_dict()))
    held = None if again else _held(run / FOLDER, weights, config)
    named = {os.path.relpath(Path(one).absolute(), run.absolute()): Path(one) for one in wider}
    families = {n: path for n, path in named.items() if held is None or n not in held.splits}
    total = len(families) + (0 if held is not None else len(config.lobes) + 6)
    step = _Steps(progress, total)
    if held is not None and not families:
        return held
    step("activations")
    read = read_text(sae, folder, config.max_tokens)
    found = held or _measured(run, read, weights, folder, config, model, step)
    for name, path in families.items():
        step(f"families in {name}")
        found = found.with_split(
            split_family(name, read.directions, read.codes, dictionary_of(path), read.x)
        )
    found.save(run / FOLDER)
    return found


@final
class _Steps:
    """Counts the steps for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, note: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, note)


def _held(folder: Path, weights: str, config: SurveyConfig) -> GeometrySurvey | None:
    """The survey that is there, if it is of this dictionary and these settings."""
    if not (folder / MANIFEST).exists():
        return None
    found = GeometrySurvey.open(folder)
    same = found.about.get("weights") == weights and found.about.get("config") == config.to_json()
    return found if same else None


def _measured(
    run: Path,
    read: SurveyedText,
    weights: str,
    folder: Path,
    config: SurveyConfig,
    model: LanguageModel | None,
    step: _Steps,
) -> GeometrySurvey:
    sae, alive = read.sae, read.fires.nonzero().squeeze(1)
    unit = read.directions[alive]
    step("the cloud of directions")
    cloud = galaxy(unit, n_null=config.draws, seed=config.seed)
    step("pairs of directions")
    close = coherence(unit, n_null=config.draws, seed=config.seed)
    pairs = {"largest |cosine|": close.largest, "nearest |cosine|, median": close.nearest}
    if sae.d_in == sae.d_out and not sae.is_transcoder:
        pairs["encoder and decoder, median cosine"] = alignment(sae, n_null=config.draws).median
    step("parallelograms of latents")
    four, share = _crystals(unit, alive, config)
    counts, levels = _levels(read, config, step)
    step("families")
    tree = _tree(run, read)
    step("pairs of words")
    words, missing = _words(folder, sae, config, model)
    about = {
        "dictionary": f"{sae.d_sae:,} latents of {sae.activation!r}",
        "hook": sae.hook,
        "model": str((sae.metadata.get("model") or {}).get("name") or ""),
        "corpus": read.corpus,
        "d_sae": sae.d_sae,
        "d_out": sae.d_out,
        "signed": bool(sae.activation.signed),
        "n_alive": len(alive),
        "n_tokens": len(read.x),
        "n_chunks": counts,
        "chunk_tokens": chunk_tokens_of(read, config.chunk_tokens),
        "config": config.to_json(),
        "weights": weights,
    }
    return GeometrySurvey(
        about=about,
        galaxy=cloud,
        pairs=pairs,
        parallelograms=four,
        parallel_share=share,
        levels=levels,
        words=words,
        words_missing=missing,
        splits={},
        tree=tree,
    )


def _crystals(
    unit: Tensor, alive: Tensor, config: SurveyConfig
) -> tuple[Parallelograms, AgainstNull]:
    few = min(3, len(unit) - 2)
    found = parallelograms(unit, n_neighbors=few, n_null=config.draws, seed=config.seed)
    classes = difference_classes(unit, n_neighbors=few, n_null=config.draws, seed=config.seed)
    best = []
    for one in found.best:
        a, b, c, d = (int(alive[corner]) for corner in one.corners)
        best.append(replace(one, corners=(a, b, c, d)))
    return replace(found, best=tuple(best)), classes.share


def _levels(
    read: SurveyedText, config: SurveyConfig, step: _Steps
) -> tuple[int, dict[int, LobeLevel]]:
    """Chunks counted, and the lobes at each number of them that the text is enough for."""
    signed = bool(read.sae.activation.signed)
    chunks = chunks_of(read.addresses.row.long(), chunk_tokens_of(read, config.chunk_tokens))
    counts = ChunkCounts.of(read.codes, chunks)
    generator = torch.Generator().manual_seed(config.seed)
    kept = torch.from_numpy(counts.between(5, 0.5))
    kept = kept[read.fires[kept]]
    if len(kept) > config.max_latents:
        drawn = torch.randperm(len(kept), generator=generator)[: config.max_latents]
        kept = kept[drawn.sort().values]
    some, directions = counts.of_latents(kept.numpy()), read.directions[kept]
    places, levels = places_of(read), {}
    for number in sorted(set(config.lobes)):
        step(f"{number} lobes")
        if len(kept) < 4 * number:
            continue
        test = spatial_modularity(
            some, directions, number, kind=config.affinity, signed=signed,
            n_null=config.shuffles, n_fits=config.draws, n_random=config.draws, seed=config.seed,
        )  # fmt: skip
        inner = some.of_latents(test.latents.numpy())
        whole = Places(
            tokens=places.tokens[:, kept.numpy()],
            documents=places.documents[:, kept.numpy()],
            names=places.names,
        )
        level = level_of(
            test, inner, directions, whole, kind=config.affinity, near=config.near,
            signed=signed, shuffles=config.shuffles, seed=config.seed,
        )  # fmt: skip
        levels[number] = level.of_dictionary(kept)
    return counts.n_chunks, levels


def _tree(run: Path, read: SurveyedText) -> TreeFamily | None:
    """The tree of a dictionary that was trained on nested prefixes."""
    if not (run / "run.json").exists():
        return None
    for term in read_json(run / "run.json", "a run").get("terms") or []:
        if term.get("name") == Matryoshka.name:
            ends = Matryoshka(shares=tuple(term["shares"])).ends(read.sae.d_sae)
            signed = bool(read.sae.activation.signed)
            # A direction that is zero points nowhere; its latent never fires, so any will do.
            directions = read.directions.clone()
            directions[directions.norm(dim=1) == 0] = 1.0
            return TreeFamily.of(latent_tree(directions, read.codes, ends, signed=signed), ends)
    return None


def _words(
    folder: Path, sae: SAE, config: SurveyConfig, model: LanguageModel | None
) -> tuple[WordCrystals | None, str]:
    if not config.words:
        return None, "The survey was made without them (--no-words)."
    try:
        reader = model or load_model(HarvestSource.of(folder).model)
        return word_crystals(reader, sae, n_null=config.shuffles, seed=config.seed), ""
    except (DataError, StoreError) as error:
        return None, str(error)
