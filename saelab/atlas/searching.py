"""Which latents does a word, or a number, mean?"""

from collections.abc import Callable, Sequence
from typing import Any

from saelab.atlas.records import SearchHit
from saelab.atlas.tables import AtlasTables

__all__ = ["search"]

_LABEL = (
    "SELECT latent, sign, text, CASE WHEN score_name = 'z' THEN 0.0 ELSE score END AS share "
    "FROM labels WHERE kind <> 'output' AND "
)
_QUERIES: tuple[tuple[str, float, str], ...] = (
    (
        "human",
        90.0,
        "SELECT latent, sign, label AS text, 1.0 AS share FROM annotations "
        "WHERE contains(lower(label), $text)",
    ),
    (
        "llm",
        80.0,
        "SELECT latent, sign, text, coalesce(score, 0.5) AS share FROM explanations "
        "WHERE contains(lower(text), $text)",
    ),
    (
        "note",
        70.0,
        "SELECT latent, sign, note AS text, 1.0 AS share FROM annotations "
        "WHERE contains(lower(note), $text)",
    ),
    ("label", 60.0, _LABEL + "contains(lower(text), '“' || $trimmed || '”')"),
    (
        "token",
        50.0,
        "SELECT latent, sign, text, share * precision AS share FROM profiles "
        "WHERE family = 'token' AND trim(lower(text)) = $trimmed",
    ),
    (
        "promoted",
        40.0,
        "SELECT latent, side AS sign, text, 1.0 / (1 + rank) AS share FROM logits "
        "JOIN (SELECT token_id, text FROM vocabulary WHERE trim(lower(text)) = $trimmed) "
        "USING (token_id) WHERE side = 1 OR (SELECT count(*) FROM tails WHERE sign = -1) > 0",
    ),
    ("label", 30.0, _LABEL + "contains(lower(text), $text)"),
    (
        "example",
        10.0,
        "SELECT latent, sign, any_value(text) AS text, count(*) / 100.0 AS share FROM examples "
        "WHERE contains(lower(text), $text) GROUP BY latent, sign",
    ),
)
"""(field, weight, query for latent, sign, text, share from 0 to 1), best first."""


def search(
    tables: AtlasTables,
    text: str,
    limit: int,
    labels: Callable[[Sequence[int]], dict[int, str]],
) -> list[SearchHit]:
    """The best hit of each latent and side, best first; example texts only if nothing else is."""
    found: dict[tuple[int, int], tuple[float, str, str]] = {}
    for latent, sign, field, what, score in _hits(tables, text, limit):
        old = found.get((latent, sign))
        if old is None or score > old[0]:
            found[(latent, sign)] = (score, field, what)
    best = sorted(found.items(), key=lambda one: (-one[1][0], one[0][0], -one[0][1]))[:limit]
    names = labels([latent for (latent, _), _ in best])
    return [
        SearchHit(
            latent=latent, sign=sign, field=field, text=what, score=score, label=names[latent]
        )
        for (latent, sign), (score, field, what) in best
    ]


def _hits(tables: AtlasTables, text: str, limit: int) -> list[tuple[int, int, str, str, float]]:
    found: list[tuple[int, int, str, str, float]] = []
    number = text.strip().lstrip("#")
    if number.isdecimal() and len(number) < 10:
        rows = tables.run("SELECT latent FROM latents WHERE latent = ?", [int(number)]).fetchall()
        found += [(row[0], 0, "number", number, 100.0) for row in rows]
    if not text.strip():
        return found
    for field, weight, query in _QUERIES:
        if field == "example" and len(found) >= limit:
            break  # the longest text by far: asked only when the rest says too little
        wanted: dict[str, Any] = {"text": text.lower(), "trimmed": text.strip().lower()}
        used = {name: value for name, value in wanted.items() if f"${name}" in query}
        ranked = f"SELECT * FROM ({query}) ORDER BY share DESC, latent, sign DESC LIMIT {limit}"
        rows = tables.named(ranked, used)
        found += [(r[0], r[1], field, r[2], weight + 9 * min(1.0, r[3])) for r in rows]
    return found
