"""Self-contained HTML pages: one file, no request to anywhere, light and dark, everything escaped.

Text from models and corpora is hostile until proven otherwise. It reaches a page in two ways only:
through `html.escape`, or as JSON in which no `<`, `>` or `&` is left, which the page's script puts
into the document as text. A content security policy names each script by its hash and allows no
other script, no inline handler and no connection, so even a slip would stay inert.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any, final

from saelab import plots
from saelab.errors import DataError

if TYPE_CHECKING:
    import plotly.graph_objects

__all__ = ["Card", "Grid", "Panel", "Table", "embed_json", "figures_page", "page"]


@final
@dataclass(frozen=True, kw_only=True)
class Card:
    """One number at the top of a page."""

    name: str
    """What it is."""
    value: str
    """With its unit."""
    note: str
    """What it means, in a few words."""


@final
@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure with the question it answers."""

    title: str
    """The question, or the finding."""
    caption: str
    """What was measured, on what, and how to read it."""
    figure: "plotly.graph_objects.Figure"
    """Drawn by plotly in the browser."""


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers with their definitions."""

    title: str
    """What the rows share."""
    rows: Sequence[tuple[str, str, str]]
    """Name, value with unit, definition."""


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """Things to compare, one a row."""

    title: str
    """What the rows are."""
    columns: Sequence[str]
    """Names; a column whose every cell is a number, a share or empty is set to the right."""
    rows: Sequence[Sequence[str]]
    """A cell for each column."""


def embed_json(value: Any) -> str:
    r"""JSON that is safe between script tags: ASCII, without `<`, `>` or `&`.

    Raises:
        DataError: A number is NaN or infinite.

    >>> embed_json({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise DataError(f"A page cannot show this value: {error}.") from None
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(
    title: str,
    body: str,
    *,
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """A whole HTML document.

    Args:
        title: Shown by the browser; escaped here.
        body: Markup, already escaped where it needs to be.
        data: JSON by element id, for the scripts to read.
        scripts: JavaScript, inlined in this order, after the body.

    Raises:
        DataError: A script would end its own element.
    """
    for script in scripts:
        if "</script" in script.lower():
            raise DataError("A script contains its own end tag and cannot be inlined.")
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    blocks = [
        f'<script type="application/json" id="{escape(name)}">{embed_json(value)}</script>'
        for name, value in (data or {}).items()
    ]
    code = [f"<script>{script}</script>" for script in scripts]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>{asset('style.css')}</style>",
            "</head>",
            f"<body>{body}",
            *blocks,
            *code,
            "</body>",
            "</html>",
            "",
        ]
    )


def figures_page(
    *,
    eyebrow: str,
    title: str,
    lead: str,
    warnings: Sequence[str],
    cards: Sequence[Card],
    panels: Sequence[Panel],
    tables: Sequence[Table],
    notes: Sequence[str],
    grids: Sequence[Grid] = (),
) -> str:
    """A page of numbers and plotly figures, plotly itself inlined once.

    Args:
        eyebrow: What kind of page it is.
        title: What it is about.
        lead: One sentence: what is shown, of which model, hook point, dictionary and corpus.
        warnings: What a reader must know before believing the numbers.
        cards: The numbers that matter most.
        panels: Figures.
        tables: All numbers.
        notes: How it was measured.
        grids: Things to compare, above the tables.
    """
    from plotly.offline import get_plotlyjs

    header = (
        f'<header class="top"><p class="eyebrow">{escape(eyebrow)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p></header>'
    )
    alarm = "".join(f'<p class="warning" role="alert">{escape(text)}</p>' for text in warnings)
    body = (
        f'<main class="numbers">{header}{alarm}{_cards(cards)}{_panels(panels)}'
        f"{''.join(map(_grid, grids))}{''.join(map(_table, tables))}{_notes(notes)}</main>"
    )
    figures = [panel.figure.to_plotly_json() for panel in panels]
    for figure in figures:
        figure["layout"].pop("template", None)  # the page chooses it, by the reader's scheme
    data = {
        "figures": _plain(figures),
        "templates": {"light": plots.template(), "dark": plots.template(dark=True)},
    }
    return page(title, body, data=data, scripts=[get_plotlyjs(), asset("figures.js")])


@cache
def asset(name: str) -> str:
    """The text of a file of saelab/pages."""
    return (resources.files("saelab") / "pages" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plain(figures: list[dict[str, Any]]) -> Any:
    """Plotly's own encoder knows its array types; what it writes is plain JSON."""
    from plotly.io.json import to_json_plotly

    return json.loads(to_json_plotly(figures) or "[]")


def _cards(cards: Sequence[Card]) -> str:
    items = "".join(
        f'<div class="stat"><dt>{escape(card.name)}</dt><dd class="value">{escape(card.value)}</dd>'
        f'<dd class="note">{escape(card.note)}</dd></div>'
        for card in cards
    )
    return f'<dl class="stats">{items}</dl>'


def _panels(panels: Sequence[Panel]) -> str:
    items = "".join(
        f'<figure><h2>{escape(panel.title)}</h2><div class="plot" data-figure="{place}"></div>'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        for place, panel in enumerate(panels)
    )
    return f'<section class="panels">{items}</section>'


def _table(table: Table) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{escape(value)}</td>'
        f"<td>{escape(meaning)}</td></tr>"
        for name, value, meaning in table.rows
    )
    return (
        f'<section class="definitions"><h2>{escape(table.title)}</h2><table><thead><tr><th>number'
        '</th><th class="number">value</th><th>definition</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _grid(grid: Grid) -> str:
    numeric = [all(_is_number(row[at]) for row in grid.rows) for at in range(len(grid.columns))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, grid.columns, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in grid.rows
    )
    return (
        f'<section class="grid"><h2>{escape(grid.title)}</h2><div class="wide"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").removesuffix("%") or 0)
    except ValueError:
        return False
    return True


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="notes"><h2>How it was measured</h2><ul>{items}</ul></section>'
