"""Which few components carry a behavior, and is the circuit better than chance? A page."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from saelab.errors import DataError
from saelab.files import write_bytes
from saelab.patching.figures import comparison_figure
from saelab.patching.results import Comparison, Method
from saelab.report import Card, Grid, Panel, Table, figures_page

__all__ = ["comparison_page", "save_comparison_page"]


def save_comparison_page(found: Sequence[Comparison], path: str | Path) -> Path:
    """Write `comparison_page` to a file; returns the file."""
    path = Path(path)
    write_bytes(path, comparison_page(found).encode("utf-8", "backslashreplace"))
    return path


def comparison_page(found: Sequence[Comparison]) -> str:
    """A self-contained page: curves of methods and nulls, one table a comparison.

    Args:
        found: One behavior, or several; components, edges, or both.

    Raises:
        DataError: There is nothing to show.
    """
    if not found:
        raise DataError("A page of comparisons needs at least one comparison.")
    behaviors = list(dict.fromkeys(one.behavior for one in found))
    panels = []
    for one in found:
        panels.append(_panel(one, "faithfulness"))
        if all(None not in method.mean("completeness") for method in one.methods):
            panels.append(_panel(one, "completeness"))
    return figures_page(
        eyebrow="Circuits",
        title=f"Which {' and '.join(dict.fromkeys(one.items for one in found))} carry "
        f"{' and '.join(behaviors)}?",
        lead=f"{', '.join(dict.fromkeys(one.model for one in found))}; circuits found on one half "
        "of the prompts and measured on the other.",
        warnings=[text for one in found for text in _doubts(one)],
        cards=[_card(one) for one in found],
        panels=panels,
        tables=[_about(one) for one in found],
        grids=[_grid(one) for one in found],
        notes=[
            "Faithfulness is (m(circuit) - m(none)) / (m(all) - m(none)), and completeness the "
            "faithfulness of all the rest: 0 is best. Above 1 a circuit does more than the model, "
            "as what works against the answer is gone.",
            "Area is the mean faithfulness over the logarithm of size, 1 to all items shown; of "
            "nulls the mean over draws, with the range. A size is the first from which on all "
            "larger ones are so faithful; the rest is what the model keeps without that circuit.",
            "A random circuit has as many of each kind of item at every size; permuted labels "
            "swap the answers of half of the rows before discovery; the reset network is the same "
            "model with every weight matrix in its blocks shuffled.",
            *dict.fromkeys(note for one in found for note in one.notes),
        ],
    )


def _area(method: Method) -> float:
    return statistics.fmean(method.areas())


def _doubts(found: Comparison) -> list[str]:
    methods = [one for one in found.methods if not one.is_null]
    nulls = [one for one in found.methods if one.is_null]
    if not nulls:
        return [f"{found.behavior}, {found.items}: no null was measured."]
    bar = max(max(one.areas()) for one in nulls)
    below = [one.name for one in methods if _area(one) <= bar]
    if not below:
        return []
    return [
        f"{found.behavior}, {found.items}: {', '.join(below)} ranked no better than the best draw "
        f"of a null (area {bar:.2f})."
    ]


def _card(found: Comparison) -> Card:
    methods = [one for one in found.methods if not one.is_null]
    best = max(methods or found.methods, key=_area)
    nulls = [_area(one) for one in found.methods if one.is_null]
    note = f"{best.name}, of {found.n_items:,} {found.items}"
    if nulls:
        note += f"; the best null has {max(nulls):.2f}"
    return Card(name=f"{found.behavior}: largest area", value=f"{_area(best):.2f}", note=note)


def _panel(found: Comparison, of: str) -> Panel:
    question = (
        "How small a circuit is enough?" if of == "faithfulness" else "What is left without it?"
    )
    return Panel(
        title=f"{found.behavior}, {found.items}: {question}",
        caption=f"{of.capitalize()} on {found.n_test} held-out pairs by the number of "
        f"{found.items} kept, the most important first; what is taken away is replaced "
        f"({found.stand_in}). Gray: nulls, the band their range over draws.",
        figure=comparison_figure(found, of),
    )


def _grid(found: Comparison) -> Grid:
    columns, rows = found.table()
    return Grid(title=f"{found.behavior}: {found.items}", columns=columns, rows=rows)


def _about(found: Comparison) -> Table:
    return Table(
        title=f"{found.behavior}: {found.items}",
        rows=[
            ("model", found.model, "untouched weights"),
            (
                "measured, whole model",
                f"{found.whole:+.3f} {found.unit}",
                "mean over held-out prompts",
            ),
            (
                "measured, nothing left",
                f"{found.nothing:+.3f} {found.unit}",
                f"every one of {found.n_items:,} {found.items} taken away",
            ),
            ("stand-in", found.stand_in, "what is there in place of what is taken away"),
            (
                "prompts",
                f"{found.n_discovery} and {found.n_test} pairs",
                "ranked on, and measured on",
            ),
        ],
    )
