"""Atlas: the tables of a finished atlas, read through DuckDB; the model is never needed."""

import threading
from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from jaxtyping import Float
from torch import Tensor

from saelab.atlas.annotations import Annotations
from saelab.atlas.cards import LatentCard
from saelab.atlas.manifest import check_files, read_manifest
from saelab.atlas.parquet import read_table
from saelab.atlas.reading import CardReader
from saelab.atlas.records import Annotation, Example, SearchHit
from saelab.atlas.schemas import OPTIONAL, TABLES
from saelab.atlas.searching import search
from saelab.atlas.tables import AtlasTables
from saelab.errors import ConfigError
from saelab.files import read_tensors

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from saelab.atlas.comparing import Comparison

__all__ = ["Atlas"]


@final
class Atlas:
    """An atlas that was built. Threads may share one; the explorer does.

    Made by `Atlas.open` or `build_atlas`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.about: dict[str, Any] = manifest["about"]
        """model, hook, dictionary, d_sae, d_out, signed, corpus, excluded, n_tokens, n_rows,
        length, effects_missing, has_codes, config, created: JSON-able."""
        self.identity: dict[str, Any] = manifest["identity"]
        """What the tables depend on: dictionary, model, tokens, config."""
        self.decoder_map: dict[str, Any] | None = manifest.get("map")
        """How the table decoder_map was made: config, describe, and what came out; None if `saelab
        map` was not run."""
        self.annotations = Annotations(folder / "annotations.sqlite", self.d_sae)
        """What people wrote."""
        self._files: dict[str, Any] = manifest["files"]
        made = [name for name in OPTIONAL if f"{name}.parquet" in self._files]
        self._tables = AtlasTables(folder, made)
        self._lock = threading.Lock()
        self._seen = (-1, -1)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> "Atlas":
        """Open a finished atlas.

        Args:
            folder: Where it was built.
            verify: Hash every file, and not only compare sizes.

        Raises:
            CheckpointError: It is missing, unfinished, truncated or altered.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest["files"], verify)
        return cls(folder, manifest)

    def __repr__(self) -> str:
        return f"Atlas({str(self.folder)!r}: {self.about['dictionary']} at {self.about['hook']})"

    @property
    def d_sae(self) -> int:
        """Latents of the dictionary."""
        return self.about["d_sae"]

    @property
    def signed(self) -> bool:
        """Whether latents can be below zero."""
        return self.about["signed"]

    @property
    def signs(self) -> tuple[int, ...]:
        """The sides a latent has: (1,), or (1, -1) in a signed dictionary."""
        return (1, -1) if self.signed else (1,)

    @property
    def n_tokens(self) -> int:
        """Tokens measured: the denominator of every density."""
        return self.about["n_tokens"]

    def latent(self, latent: int) -> LatentCard:
        """Everything a page about one latent shows.

        Raises:
            ConfigError: There is no such latent.
        """
        self._check(latent)
        self._refresh()
        explanations = self._tables.rows(
            "SELECT * FROM explanations WHERE latent = ? ORDER BY score DESC NULLS LAST, updated",
            [latent],
        )
        return self._reader.card(latent, self.annotations.of(latent), explanations)

    def latents(
        self,
        where: str | None = None,
        order_by: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        *,
        parameters: Sequence[Any] = (),
    ) -> "pandas.DataFrame":
        """Rows of `latents`, with label (the best), human_label, llm_label, note and starred.

        Args:
            where: An SQL condition over those columns; `?` stands for a parameter.
            order_by: Columns to sort by, such as "density DESC, latent".
            limit: Rows at most.
            offset: Rows left out before them.
            parameters: What the question marks stand for: put there whatever a user typed.

        Raises:
            ConfigError: DuckDB refuses the condition or the order.
        """
        query = f"SELECT * FROM named {self._where(where)} ORDER BY {order_by or 'latent'}"
        query += f" LIMIT {int(limit)}" if limit is not None else ""
        return self.sql(f"{query} OFFSET {int(offset)}" if offset else query, parameters)

    def count(self, where: str | None = None, *, parameters: Sequence[Any] = ()) -> int:
        """How many latents a condition selects."""
        query = f"SELECT count(*) FROM named {self._where(where)}"
        return int(self.sql(query, parameters).iat[0, 0])

    def search(self, text: str, limit: int = 50) -> list[SearchHit]:
        """Find latents by number, label, note, tokens they fire on or promote, or example text.

        Args:
            text: A number, or any text; upper and lower case are the same.
            limit: Hits at most.

        Returns:
            The best hit of each latent and side, best first.
        """
        self._refresh()
        return search(self._tables, text, limit, self.labels)

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> "pandas.DataFrame":
        """One SELECT over the tables of `saelab.atlas.TABLES`.

        Also over `annotations`, `explanations` and `named`, which is latents with their labels.

        Raises:
            ConfigError: It is not one SELECT, or DuckDB refuses it.
        """
        self._refresh()
        return self._tables.asked(query, parameters)

    def arrow(self, table: str) -> "pyarrow.Table":
        """A whole table.

        Raises:
            ConfigError: There is no such table.
        """
        if table not in TABLES and f"{table}.parquet" not in self._files:
            raise ConfigError(f"There is no table {table!r}; there are {', '.join(TABLES)}.")
        return read_table(self.folder / f"{table}.parquet")

    def labels(self, latents: Sequence[int] | None = None) -> dict[int, str]:
        """The best label of each latent: a person's, else a language model's, else automatic."""
        self._refresh()
        if latents is None:
            rows = self._tables.run("SELECT latent, label FROM named").fetchall()
        else:
            marks = list(map(int, latents))
            query = "SELECT latent, label FROM named WHERE latent IN (SELECT unnest(?))"
            rows = self._tables.run(query, [marks]).fetchall() if marks else []
        return dict(rows)

    def directions(self) -> Float[Tensor, "latent d_out"]:
        """Unit decoder directions, float32 (kept as float16: cosines are good to 0.001)."""
        record = self._files["decoder.safetensors"]
        path = self.folder / "decoder.safetensors"
        return read_tensors(path, record["sha256"])["unit"].float()

    def strings(self, ids: Sequence[int]) -> list[str]:
        """The text of token ids."""
        texts = self._vocabulary
        return [texts[token] if 0 <= token < len(texts) else f"⟨{token}⟩" for token in ids]

    def random_windows(
        self, latent: int, sign: int = 1, n: int = 10, seed: int = 0
    ) -> list[Example]:
        """Random stretches of the corpus in which one side of a latent never fires.

        Returns:
            At most `n`; fewer for a latent that fires nearly everywhere.
        """
        self._check(latent)
        return self._reader.random_windows(latent, sign, n, seed)

    def compare(self, other: "Atlas", by: str = "auto") -> "Comparison":
        """Match the latents of two dictionaries; see `saelab.atlas.comparing.compare`."""
        from saelab.atlas.comparing import compare

        return compare(self, other, by)

    def annotate(
        self,
        latent: int,
        *,
        sign: int = 0,
        label: str | None = None,
        note: str | None = None,
        starred: bool | None = None,
        author: str = "",
    ) -> Annotation:
        """Write what is given and leave the rest; every process sees it at once.

        Args:
            latent: Which latent.
            sign: +1 or -1 for one side, 0 for the latent as a whole.
            label: A name; "" removes it.
            note: Free text.
            starred: Whether to mark it.
            author: Who writes.

        Raises:
            ConfigError: There is no such latent or side.
        """
        return self.annotations.write(
            latent, sign=sign, label=label, note=note, starred=starred, author=author
        )

    def save_html(self, path: str | Path, latents: Sequence[int]) -> Path:
        """One self-contained page of some latents; see `saelab.atlas.html`."""
        from saelab.atlas.html import save_html

        return save_html(self, path, latents)

    def save_neuronpedia(
        self, folder: str | Path, latents: Sequence[int] | None = None
    ) -> list[Path]:
        """Neuronpedia's JSON batches; see `saelab.atlas.neuronpedia`."""
        from saelab.atlas.neuronpedia import save_batches

        return save_batches(self, folder, latents)

    def close(self) -> None:
        """Let the files go."""
        self._tables.close()

    @cached_property
    def _vocabulary(self) -> list[str]:
        return read_table(self.folder / "vocabulary.parquet").column("text").to_pylist()

    @cached_property
    def _names(self) -> list[str]:
        return read_table(self.folder / "documents.parquet").column("name").to_pylist()

    def _document(self, number: int) -> str:
        return self._names[number] if 0 <= number < len(self._names) else ""

    @cached_property
    def _reader(self) -> CardReader:
        return CardReader(self._tables, self.about, self.strings, self._document, self.labels)

    def _refresh(self) -> None:
        """Bring what people and models wrote since into the database."""
        from saelab.atlas.explanations import Explanations

        explanations = Explanations(self.folder / "explanations.sqlite")
        now = (self.annotations.revision(), explanations.revision())
        with self._lock:
            if now[0] != self._seen[0]:
                rows = (astuple(one) for one in self.annotations.all())
                self._tables.replace("annotations", rows)
            if now[1] != self._seen[1]:
                self._tables.replace("explanations", explanations.rows())
            self._seen = now

    def _check(self, latent: int) -> None:
        if not 0 <= latent < self.d_sae:
            raise ConfigError(
                f"Latent {latent} is not in the dictionary, which has 0 to {self.d_sae - 1}."
            )

    @staticmethod
    def _where(where: str | None) -> str:
        return f"WHERE ({where})" if where else ""
