"""How does an atlas come about, and go on after an interruption?

1. The model runs once over the text; shards of token rows become sparse codes.
2. Bands of latents become parts of the tables, from the codes alone.
3. The parts are joined, and `atlas.json` is written last.

Every shard and part is written whole or not at all and described by a file of its own, so work
that was killed at any point goes on with the first piece that is not there, and ends with the
same tables. Pieces do not depend on how many ranks share them.
"""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import final

from saelab.atlas.band import BandSources
from saelab.atlas.band_tables import band_tables
from saelab.atlas.capturing import capture
from saelab.atlas.codes import CodeShards
from saelab.atlas.config import AtlasConfig
from saelab.atlas.corpus import Corpus
from saelab.atlas.joining import BANDED, Made, join
from saelab.atlas.loss_effects import measure_loss_effects
from saelab.atlas.manifest import MANIFEST, WORK, identity_of, key_of, refuse_other_dictionary
from saelab.atlas.opened import Atlas
from saelab.atlas.parquet import write_table
from saelab.distributed import Ranks, ranks
from saelab.errors import ConfigError, DataError, Interrupted, SaelabError
from saelab.fidelity import measured_norm_limit
from saelab.files import folder_lock, read_json, sha256_of, write_json
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.tokens import Tokens

__all__ = ["build_atlas"]

Progress = Callable[[int, int, str], None]
CELLS = 8_000_000
"""Tokens of examples held at once, at most, while a band is made."""
MOST_LATENTS = 4096
EFFECTS_AT_ONCE = 512
LIMIT = "limit.json"


def build_atlas(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    folder: str | Path,
    config: AtlasConfig | None = None,
    progress: Progress | None = None,
    *,
    rebuild: bool = False,
    allow_other_model: bool = False,
) -> Atlas:
    """Look at every latent over a text, and keep what is found as tables.

    Call it again after an interruption and it goes on; call it on a finished atlas and it only
    opens it. Under torchrun every rank calls it with the same arguments.

    Args:
        sae: The dictionary; `sae.hook` says where it reads.
        model: The model.
        tokens: The text. Positions that are not kept, position 0 and norm outliers are left out.
        folder: Where the atlas goes.
        config: How; the defaults if None.
        progress: Called with (done, in all, what): token positions first, then latents.
        rebuild: Replace an atlas made with other settings or from other text. What people and
            language models wrote about the same dictionary is kept.
        allow_other_model: Build even with other weights than the dictionary was trained on.

    Returns:
        The atlas, opened.

    Raises:
        ConfigError: The dictionary has no hook point, or the folder holds another atlas.
        DataError: Every position is excluded, or a latent is not finite.
        ModelError: The dictionary was trained on other weights.
        FolderBusyError: Another process is writing the folder.
        DiskFullError: There is no room; finished parts are kept.
        Interrupted: The work was stopped by a signal; finished parts are kept.
    """
    config, folder = config or AtlasConfig(), Path(folder)
    if not allow_other_model:
        require_same_model(sae, model.identity.to_json())
    if sae.hook is None:
        raise ConfigError(
            "The dictionary does not say which hook point it belongs to. Set sae.hook, for "
            "example sae.hook = 'blocks.15.hook_resid_post'."
        )
    if config.max_tokens is not None:
        tokens = tokens[: -(-config.max_tokens // tokens.length)]
    with ranks() as everyone:
        job = _Job(sae, model, tokens, folder, config, everyone)
        with folder_lock(folder) if everyone.rank == 0 else nullcontext():
            job.together(lambda: refuse_other_dictionary(folder, job.identity, rebuild), first=True)
            job.run(progress)
        first = everyone.rank == 0
    atlas = Atlas.open(folder)
    if config.direct_effects and first:
        _measure_direct_effects(atlas, sae, model, tokens, config, progress)
    return atlas


def _measure_direct_effects(
    atlas: Atlas,
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    config: AtlasConfig,
    progress: Progress | None,
) -> None:
    """Of the latents that fire and were not measured yet, a few hundred at a time."""
    todo = atlas.sql(
        "SELECT latent FROM latents WHERE count > 0 AND latent NOT IN "
        "(SELECT latent FROM loss_effects) ORDER BY latent"
    )["latent"].tolist()
    for start in range(0, len(todo), EFFECTS_AT_ONCE):
        some = todo[start : start + EFFECTS_AT_ONCE]
        measure_loss_effects(
            atlas, sae, model, tokens, some, n_examples=config.direct_effects, full=False,
            rows_per_batch=config.rows_per_batch,
        )  # fmt: skip
        if progress is not None:
            progress(start + len(some), len(todo), "effects on the loss")


@final
class _Job:
    """One atlas being built."""

    def __init__(
        self,
        sae: SAE,
        model: LanguageModel,
        tokens: Tokens,
        folder: Path,
        config: AtlasConfig,
        ranks: Ranks,
    ) -> None:
        self.sae, self.model, self.tokens = sae, model, tokens
        self.folder, self.config, self.ranks = folder, config, ranks
        self.identity = identity_of(sae, model, tokens, config)
        self.work = folder / WORK / key_of(self.identity)
        batches = max(1, config.tokens_per_shard // (tokens.length * config.rows_per_batch))
        self.shards = CodeShards(
            self.work / "codes", batches * config.rows_per_batch, tokens.length, tokens.n_rows,
            sae.d_sae,
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether the folder already holds this atlas."""
        if not (self.folder / MANIFEST).exists():
            return False
        return read_json(self.folder / MANIFEST, "an atlas").get("identity") == self.identity

    def run(self, progress: Progress | None) -> None:
        """Do this rank's share of everything."""
        if self.finished:  # a kill after the manifest was written leaves the parts behind
            self.together(lambda: shutil.rmtree(self.folder / WORK, ignore_errors=True), first=True)
            return
        self.together(self._measure_limit, first=True)
        self.together(lambda: self._capture(progress))
        corpus = Corpus.of(self.tokens, self.shards.measured())
        if not corpus.n_measured:
            raise DataError(
                f"All {self.tokens.n_tokens:,} token positions are excluded (first positions, "
                "special tokens, padding, norm outliers), so there is nothing to look at. Use "
                "other text."
            )
        self.together(lambda: self._make_bands(corpus, progress))
        self.together(lambda: self._join(corpus), first=True)

    def together(self, work: Callable[[], None], first: bool = False) -> None:
        """Do something on every rank, or on rank 0 alone, and wait until all are done.

        Raises:
            SaelabError: It failed here, or on another rank.
        """
        error: SaelabError | None = None
        try:
            if self.ranks.rank == 0 or not first:
                work()
        except KeyboardInterrupt:
            error = Interrupted(
                f"Building the atlas in {self.folder} was stopped; finished parts are kept. Run "
                "the same command again to go on."
            )
        except SaelabError as raised:
            error = raised
        if self.ranks.any(error is not None):
            raise error or ConfigError("Another process failed; see its message.")

    def _measure_limit(self) -> None:
        """Once, on the first batch; remembered for the other ranks and for later."""
        path = self.work / LIMIT
        if not path.exists():
            factor, rows = self.config.outlier_factor, self.config.rows_per_batch
            hook = str(self.sae.hook)
            limit = measured_norm_limit(self.model, self.tokens, hook, factor, rows)
            write_json(path, {"norm_limit": limit})

    @property
    def norm_limit(self) -> float | None:
        """Positions whose norm is above it are left out."""
        return read_json(self.work / LIMIT, "a norm limit")["norm_limit"]

    def _mine(self, n_parts: int) -> range:
        """The parts this rank does: every world-th one."""
        return range(self.ranks.rank, n_parts, self.ranks.world)

    def _capture(self, progress: Progress | None) -> None:
        todo = [one for one in self._mine(len(self.shards)) if not self.shards.finished(one)]
        capture(
            self.sae, self.model, self.tokens, self.shards, todo, self.norm_limit, self.config,
            progress,
        )  # fmt: skip

    def _bands(self) -> list[tuple[int, int]]:
        """Ranges of latents that are worked on at once."""
        config = self.config
        sides = 2 if self.sae.activation.signed else 1
        drawn = config.intervals * config.per_interval + config.quantiles * config.per_quantile
        each = (
            sides * (config.top + drawn + config.near_misses) * (config.before + config.after + 1)
        )
        most = max(1, min(MOST_LATENTS, CELLS // each))
        bands, first, pairs = [], 0, 0
        for latent, count in enumerate(self.shards.counts().tolist()):
            if latent > first and (pairs + count > config.band_pairs or latent - first == most):
                bands.append((first, latent))
                first, pairs = latent, 0
            pairs += count
        return [*bands, (first, self.sae.d_sae)]

    def _part(self, table: str, band: int) -> Path:
        return self.work / table / f"{band:05d}.parquet"

    def _make_bands(self, corpus: Corpus, progress: Progress | None) -> None:
        bands = self._bands()
        mine = [band for band in self._mine(len(bands)) if not self._band_finished(band)]
        if not mine:
            return
        sources = BandSources(self.sae, self.model, corpus, self.shards, self.config)
        total = sum(bands[band][1] - bands[band][0] for band in mine)
        done = 0
        for band in mine:
            if progress is not None:
                progress(done, total, "latents")
            made = band_tables(sources.band(*bands[band]))
            files = {
                name: write_table(self._part(name, band), made[name], durable=False)
                for name in BANDED
            }
            write_json(self.work / "bands" / f"{band:05d}.json", files)
            done += bands[band][1] - bands[band][0]
        if progress is not None:
            progress(total, total, "latents")

    def _band_finished(self, band: int) -> bool:
        record = self.work / "bands" / f"{band:05d}.json"
        if not record.exists():
            return False
        files = read_json(record, "a description of a band")
        return all(
            self._part(name, band).exists()
            and sha256_of(self._part(name, band)) == files.get(name, {}).get("sha256")
            for name in BANDED
        )

    def _join(self, corpus: Corpus) -> None:
        parts = {
            name: [self._part(name, band) for band in range(len(self._bands()))] for name in BANDED
        }
        made = Made(
            folder=self.folder,
            sae=self.sae,
            model=self.model,
            tokens=self.tokens,
            corpus=corpus,
            shards=self.shards,
            config=self.config,
            norm_limit=self.norm_limit,
            identity=self.identity,
        )
        join(made, parts)
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
