"""What did language models say about latents, and how well did it do? Kept apart from the tables.

Every reply is kept under a hash of its request, so work that was interrupted asks for nothing
twice, and a rebuild of the atlas loses nothing that was paid for.
"""

import json
from typing import Any, final

from saelab.atlas.written import Written, now

__all__ = ["Explanations"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, reply TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
    updated TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS explanations (
    latent INTEGER NOT NULL, sign INTEGER NOT NULL, method TEXT NOT NULL, model TEXT NOT NULL,
    text TEXT NOT NULL, updated TEXT NOT NULL, PRIMARY KEY (latent, sign, method, model)
);
CREATE TABLE IF NOT EXISTS scores (
    latent INTEGER NOT NULL, sign INTEGER NOT NULL, method TEXT NOT NULL, model TEXT NOT NULL,
    scorer TEXT NOT NULL, judge TEXT NOT NULL, value REAL, details TEXT NOT NULL,
    updated TEXT NOT NULL, PRIMARY KEY (latent, sign, method, model, scorer, judge)
);
"""
_SHOWN = ("detection", "fuzzing", "simulation", "output")
"""Which score stands beside a description: the first of these that it has."""


@final
class Explanations(Written):
    """The explanations of one dictionary.

    Args:
        path: The SQLite file; made at the first write.
    """

    schema = _SCHEMA

    def reply(self, key: str) -> str | None:
        """The reply to a request, if it was ever answered."""
        found = self._read("SELECT reply FROM replies WHERE key = ?", (key,))
        return found[0][0] if found else None

    def keep_reply(self, key: str, reply: str, used: tuple[int, int]) -> None:
        """Keep a reply and how many tokens it cost."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", (key, reply, *used, now())
            )

    def keep(self, latent: int, sign: int, method: str, model: str, text: str) -> None:
        """Keep a description."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO explanations VALUES (?, ?, ?, ?, ?, ?)",
                (latent, sign, method, model, text, now()),
            )

    def keep_score(
        self,
        explained: tuple[int, int, str, str],
        scorer: str,
        judge: str,
        value: float | None,
        details: dict[str, Any],
    ) -> None:
        """Keep how well a description (latent, sign, method, model) does."""
        row = (*explained, scorer, judge, value, json.dumps(details), now())
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row
            )

    def rows(self) -> list[tuple]:
        """(latent, sign, text, model, method, score, score_name, updated) of each description."""
        scores: dict[tuple, dict[str, float | None]] = {}
        for *explained, scorer, value in self._read(
            "SELECT latent, sign, method, model, scorer, value FROM scores"
        ):
            scores.setdefault(tuple(explained), {})[scorer] = value
        found = []
        for latent, sign, method, model, text, updated in self._read(
            "SELECT * FROM explanations ORDER BY latent, sign DESC, method, model"
        ):
            mine = scores.get((latent, sign, method, model), {})
            name = next((one for one in _SHOWN if mine.get(one) is not None), "")
            found.append((latent, sign, text, model, method, mine.get(name), name, updated))
        return found

    def scores(self, latent: int | None = None) -> list[dict[str, Any]]:
        """Every score, of one latent or of all, with its details."""
        names = ("latent", "sign", "method", "model", "scorer", "judge", "value", "details")
        query = f"SELECT {', '.join(names)} FROM scores"
        query += "" if latent is None else " WHERE latent = ?"
        rows = self._read(
            query + " ORDER BY 1, 2 DESC, 3, 4, 5, 6", () if latent is None else (latent,)
        )
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [{**one, "details": json.loads(one["details"])} for one in found]
