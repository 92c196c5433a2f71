"""The last step of a build: parts become tables, and `atlas.json` says what they are about."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import torch

from saelab.atlas.band_tables import POSITION_PARTS
from saelab.atlas.codes import CodeShards
from saelab.atlas.config import AtlasConfig
from saelab.atlas.corpus import Corpus
from saelab.atlas.corpus_windows import CorpusWindows
from saelab.atlas.directions import logit_shapes, written
from saelab.atlas.manifest import FORMAT_VERSION, MANIFEST
from saelab.atlas.parquet import join_parts, table_of, write_table
from saelab.atlas.schemas import OPTIONAL, TABLES
from saelab.atlas.spelling import Spelling, storable
from saelab.files import provenance, read_json, write_json, write_tensors
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.tokens import Tokens

__all__ = ["BANDED", "Made", "join"]

WHOLE = ("loss_effects", "windows", "vocabulary", "documents")
BANDED = tuple(name for name in TABLES if name not in WHOLE)
"""Tables that are made in bands of latents; the others are made at once."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What an atlas was made from."""

    folder: Path
    """Where it goes."""
    sae: SAE
    """The dictionary."""
    model: LanguageModel
    """The model."""
    tokens: Tokens
    """The text."""
    corpus: Corpus
    """Its tokens, and which of them were measured."""
    shards: CodeShards
    """Their codes."""
    config: AtlasConfig
    """How."""
    norm_limit: float | None
    """Positions whose norm is above it were left out."""
    identity: dict[str, Any]
    """What the tables depend on."""


def join(made: Made, parts: Mapping[str, Sequence[Path]]) -> None:
    """Write the tables, the directions, the codes if they are kept, and last the manifest.

    Args:
        made: What the atlas was made from.
        parts: The files of each banded table, in the order of the latents.
    """
    folder = made.folder
    (folder / MANIFEST).unlink(missing_ok=True)  # it is about files that now change
    for name in OPTIONAL:  # of the latents that fired in another text
        (folder / f"{name}.parquet").unlink(missing_ok=True)
    files: dict[str, Any] = {}
    for name, some in parts.items():
        files[f"{name}.parquet"] = join_parts(folder / f"{name}.parquet", name, some)
    windows = CorpusWindows.of(made.corpus, made.config)
    spelling = Spelling.of(made.model, made.corpus.ids)
    for name, columns in (
        ("loss_effects", {name: [] for name in TABLES["loss_effects"]}),
        ("windows", windows.columns(made.corpus, spelling.texts)),
        ("vocabulary", _vocabulary(made.model, made.corpus)),
        ("documents", _documents(made.tokens, made.corpus)),
    ):
        files[f"{name}.parquet"] = write_table(folder / f"{name}.parquet", table_of(name, columns))
    unit = torch.nn.functional.normalize(written(made.sae), dim=1).half()
    digest = write_tensors(folder / "decoder.safetensors", {"unit": unit})
    size = (folder / "decoder.safetensors").stat().st_size
    files["decoder.safetensors"] = {"sha256": digest, "bytes": size}
    files |= _keep_codes(made)
    manifest = {
        "format_version": FORMAT_VERSION,
        "about": _about(made),
        "identity": made.identity,
        "files": files,
        "provenance": provenance(),
    }
    write_json(folder / MANIFEST, manifest)


def _keep_codes(made: Made) -> dict[str, Any]:
    """Link or copy the codes to where they stay, replacing those of an older atlas."""
    place = made.folder / "codes"
    shutil.rmtree(place, ignore_errors=True)
    if not made.config.keep_codes:
        return {}
    place.mkdir()
    files = {}
    for shard in range(len(made.shards)):
        source = made.shards.path(shard)
        try:
            (place / source.name).hardlink_to(source)
        except OSError:  # a file system without links
            shutil.copyfile(source, place / source.name)
        record = read_json(source.with_suffix(".json"), "a description of codes")
        size = source.stat().st_size
        files[f"codes/{source.name}"] = {"sha256": record["sha256"], "bytes": size}
    return files


def _about(made: Made) -> dict[str, Any]:
    sae, limit, config = made.sae, made.norm_limit, made.config
    outliers = f", positions whose norm exceeds {limit:,.1f}" if limit is not None else ""
    _, missing = logit_shapes(sae, made.model, written(sae)[:1], 1)
    return {
        "model": made.model.name,
        "hook": sae.hook,
        "dictionary": f"{sae.d_sae:,} latents of {sae.activation!r}",
        "d_sae": sae.d_sae,
        "d_out": sae.d_out,
        "signed": bool(sae.activation.signed),
        "corpus": str(made.tokens.corpus.get("name") or "an unnamed corpus"),
        "excluded": f"Left out: the first position of each row, special tokens, padding{outliers}.",
        "norm_limit": limit,
        "n_tokens": made.corpus.n_measured,
        "n_rows": made.tokens.n_rows,
        "length": made.tokens.length,
        "positions": _per_part(made.corpus),
        "rows_per_shard": made.shards.rows,
        "n_cooccurrence": min(made.corpus.n_measured, config.cooccurrence_tokens),
        "effects_missing": missing,
        "has_codes": config.keep_codes,
        "config": config.to_json(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _per_part(corpus: Corpus) -> list[int]:
    """Measured tokens per equal part of the row."""
    place = corpus.measured.nonzero().squeeze(1)
    part = place % corpus.length * POSITION_PARTS // corpus.length
    return torch.bincount(part, minlength=POSITION_PARTS).tolist()


def _vocabulary(model: LanguageModel, corpus: Corpus) -> dict[str, Any]:
    n = max(model.d_vocab, int(corpus.ids.max()) + 1)
    texts = [storable(text) for text in model.token_strings(list(range(n)))]
    count = torch.bincount(corpus.ids[corpus.measured], minlength=n)
    return {"token_id": torch.arange(n), "text": texts, "count": count}


def _documents(tokens: Tokens, corpus: Corpus) -> dict[str, Any]:
    names = [storable(name) for name in tokens.document_names]
    document = corpus.document[corpus.measured]
    count = torch.bincount(document[document >= 0], minlength=len(names))
    return {"document": torch.arange(len(names)), "name": names, "tokens": count}
