"""How do texts become documents of firing ends? One pass of the model and the dictionary.

Every text is cut into rows of `length` tokens, each after a BOS of its own; position 0, special
tokens and outliers of norm count nowhere. Codes of tokens are pooled batch by batch and forgotten,
so memory holds one batch of activations and one shard of documents. With a folder, each finished
shard is written, and the same call goes on after an interruption.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.corpora import read
from saelab.documents.codes import DocumentCodes
from saelab.documents.config import DocumentConfig
from saelab.documents.cutting import Unit, add_text, cut
from saelab.documents.pooling import Firings, assembled, cat, firings_of, joined
from saelab.documents.saving import DocumentManifest, open_documents, write_shard
from saelab.documents.texts import Texts
from saelab.errors import CheckpointError, ConfigError, DataError, Interrupted
from saelab.files import folder_lock
from saelab.models import LanguageModel
from saelab.models.identity import hash_of_tensors
from saelab.sae import SAE
from saelab.same_model import require_same_model

__all__ = ["read_documents"]

Progress = Callable[[int, int], object]


def read_documents(
    model: LanguageModel,
    sae: SAE,
    source: Any,
    folder: str | Path | None = None,
    *,
    config: DocumentConfig | None = None,
    progress: Progress | None = None,
) -> DocumentCodes:
    """Read texts as sparse codes, one row a document.

    Args:
        model: Runs up to the place the dictionary reads.
        sae: Its hook point says where.
        source: A corpus's name, a path, a list of texts: what `corpora.read` takes.
        folder: Where documents are kept; the same call opens or continues it. None keeps them in
            memory only.
        config: What a document is and how much of it is read.
        progress: Called with (passages read, passages to read as far as known).

    Raises:
        ConfigError: The dictionary names no hook point.
        ModelError: The dictionary is of another model.
        DataError: No text has a token that counts.
        CheckpointError: The folder holds documents of other settings, or the corpus has changed.
        Interrupted: Stopped by a signal; finished shards are kept.
    """
    reader = _Reader(model, sae, source, config or DocumentConfig(), progress)
    if folder is None:
        parts = [shard.documents for shard in reader.shards(0)]
        return replace(cat(parts, same_sources=True), about=reader.about)
    folder = Path(folder)
    with folder_lock(folder):
        manifest = _begun(folder, reader)
        if not manifest.complete:
            try:
                _continued(folder, reader, manifest)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"Reading into {folder} was stopped; finished shards are kept. Run the same "
                    "command again to go on."
                ) from None
    return open_documents(folder)


@dataclass(eq=False)
class _Made:
    """One shard in memory."""

    documents: DocumentCodes
    n_sources: int
    digest: str


@final
class _Reader:
    """Turns a corpus into shards of documents."""

    def __init__(
        self,
        model: LanguageModel,
        sae: SAE,
        source: Any,
        config: DocumentConfig,
        progress: Progress | None,
    ) -> None:
        if sae.hook is None:
            raise ConfigError("The dictionary does not say which hook point it reads.")
        require_same_model(sae, model.identity.to_json())
        self.model, self.sae, self.config, self.progress = model, sae, config, progress
        self.corpus = read(source)
        self.norm_limit: float | None = None
        self.n_short = 0
        self._n_rows = 0
        self.about = {
            "model": model.identity.to_json(),
            "dictionary": {"weights": hash_of_tensors(dict(sae.state_dict())), "hook": sae.hook},
            "corpus": {"name": self.corpus.name, "source": self.corpus.source,
                       "licence": self.corpus.licence},
            "config": config.to_json(),
        }  # fmt: skip

    @property
    def signed(self) -> bool:
        """Whether latents can be negative."""
        return bool(self.sae.activation.signed)

    def shards(self, done: int, skip: Sequence[tuple[int, str]] = ()) -> Iterator[_Made]:
        """The shards that are left.

        Args:
            done: Documents in earlier shards.
            skip: Texts and digest of each earlier shard.
        """
        sources = enumerate(self.corpus.documents)
        for index, (n, digest) in enumerate(skip):
            seen = hashlib.sha256()
            for _, (_, document) in zip(range(n), sources, strict=False):
                add_text(seen, document)
            if seen.hexdigest() != digest:
                raise CheckpointError(
                    f"The text of {self.corpus.name} is not what shard {index} was made of. Read "
                    "it into another folder."
                )
        units: list[Unit] = []
        seen, n_sources = hashlib.sha256(), 0
        wanted = self.config.max_documents
        for group, document in sources:
            add_text(seen, document)
            n_sources += 1
            made_of, n_short = cut(document, group, self.model, self.config)
            units, self.n_short = units + made_of, self.n_short + n_short
            if wanted is not None:
                units = units[: wanted - done]
            full = wanted is not None and done + len(units) >= wanted
            if full or sum(len(unit.rows) for unit in units) >= self.config.rows_per_shard:
                if (made := self._pooled(units)) is not None:
                    done += len(made)
                    yield _Made(made, n_sources, seen.hexdigest())
                    seen, n_sources = hashlib.sha256(), 0
                units = []
                if wanted is not None and done >= wanted:
                    return
        made = self._pooled(units)
        if made is not None:
            done += len(made)
            yield _Made(made, n_sources, seen.hexdigest())
        if not done:
            raise DataError(
                f"No text of {self.corpus.name} has {self.config.least_tokens} tokens that count, "
                "so there is no document."
            )

    def _pooled(self, units: list[Unit]) -> DocumentCodes | None:
        """Run the model on a shard's rows, those of like length together."""
        rows = [(len(row), i, r) for i, unit in enumerate(units) for r, row in enumerate(unit.rows)]
        n_tokens = torch.zeros(len(units), dtype=torch.long)
        parts: list[Firings] = []
        order = sorted(rows, reverse=True)  # the longest first: no batch after it needs more memory
        for start in range(0, len(order), self.config.rows_per_batch):
            batch = [(i, r) for _, i, r in order[start : start + self.config.rows_per_batch]]
            firings, document = self._batch(units, batch)
            n_tokens += torch.bincount(document, minlength=len(units))
            parts.append(firings)
            if self.progress is not None:
                self.progress(self._n_rows + start + len(batch), self._n_rows + len(order))
        self._n_rows += len(order)
        if not parts:
            return None
        n_ends = self.sae.d_sae * (2 if self.signed else 1)
        firings = joined(
            Firings(*(torch.cat(column) for column in zip(*parts, strict=True))), n_ends
        )
        return self._kept(units, firings, n_tokens)

    def _kept(self, units: list[Unit], firings: Firings, n_tokens: Tensor) -> DocumentCodes | None:
        """The documents of which enough tokens count."""
        enough = n_tokens >= self.config.least_tokens
        self.n_short += int((~enough).sum())
        if not bool(enough.any()):
            return None
        made = assembled(
            firings,
            n_tokens,
            self.sae.d_sae,
            signed=self.signed,
            groups=torch.tensor([unit.group for unit in units]),
            names=[unit.name for unit in units],
        )
        words = [
            self.model.token_strings([token for row in unit.rows for token in row])
            for unit in units
        ]
        made = replace(made, fields=[unit.fields for unit in units], texts=Texts.of_strings(words))
        return made.rows(enough)

    def _batch(self, units: list[Unit], batch: list[tuple[int, int]]) -> tuple[Firings, Tensor]:
        """Firings of some rows, and the document of each token that counts."""
        model, hook = self.model, str(self.sae.hook)
        first = [] if model.bos_token_id is None else [model.bos_token_id]
        rows = [[*first, *units[i].rows[r]] for i, r in batch]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), True
        special = torch.tensor(sorted(model.special_token_ids), dtype=torch.long)
        counts = mask & ~torch.isin(tokens, special)
        counts[:, 0] = False
        x = model.activations(tokens.to(model.device), [hook], mask.to(model.device))[hook]
        counts = self._calm(x, counts)
        document = torch.tensor([i for i, _ in batch])[:, None].expand_as(counts)[counts]
        # Where the token is in its document's text, which has no BOS.
        starts = torch.tensor([self.config.length * r for _, r in batch]) - len(first)
        place = (starts[:, None] + torch.arange(tokens.shape[1]))[counts]
        codes = self.sae.encode(x[counts.to(x.device)]).to("cpu")
        return firings_of(codes, document, place, signed=self.signed), document

    def _calm(self, x: Tensor, counts: Tensor) -> Tensor:
        """Tokens that count and are no outliers of norm; the first batch sets the limit."""
        if self.config.outlier_factor is None or not bool(counts.any()):
            return counts
        norms = x.float().norm(dim=-1).cpu()
        if self.norm_limit is None:
            self.norm_limit = self.config.outlier_factor * float(norms[counts].median())
        return counts & (norms <= self.norm_limit)


def _begun(folder: Path, reader: _Reader) -> DocumentManifest:
    """The manifest to go on from: the folder's, if it is of the same work."""
    if not (folder / "manifest.json").exists():
        if left := [p.name for p in folder.iterdir() if not p.name.startswith(".")]:
            stray = [name for name in left if not name.split(".")[0].isdigit()]
            if stray:
                raise CheckpointError(f"{folder} holds {stray[0]}. Choose another folder.")
        return DocumentManifest(d_sae=reader.sae.d_sae, two_ended=reader.signed, about=reader.about)
    manifest = DocumentManifest.read(folder)
    for name, asked in reader.about.items():
        if (held := manifest.about.get(name)) != asked:
            raise CheckpointError(
                f"{folder} holds documents of another {name}: {held}, and this asks for {asked}. "
                "Use the same to continue it, or choose another folder."
            )
    reader.norm_limit, reader.n_short = manifest.norm_limit, manifest.n_short
    return manifest


def _continued(folder: Path, reader: _Reader, manifest: DocumentManifest) -> None:
    """Make and write the shards that are missing."""
    done = sum(shard.n_documents for shard in manifest.shards)
    wanted = reader.config.max_documents
    if wanted is None or done < wanted:
        for made in reader.shards(done, [(s.n_sources, s.digest) for s in manifest.shards]):
            shard = write_shard(
                folder, len(manifest.shards), made.documents, made.n_sources, made.digest
            )
            manifest = replace(
                manifest,
                shards=(*manifest.shards, shard),
                norm_limit=reader.norm_limit,
                n_short=reader.n_short,
            )
            manifest.write(folder)
    replace(manifest, complete=True, n_short=reader.n_short).write(folder)
