"""A picture one can take away: plotly's button saves the image, the one under it the numbers."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st
from explorer import style

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Rows", "as_csv", "chart", "numbers"]

Rows = Callable[[], Sequence[Mapping[str, Any]]]
"""Makes the lines of a table; called only when they are asked for."""


def chart(
    figure: "Figure",
    name: str,
    rows: Rows | None = None,
    *,
    key: str,
    on_pick: Callable[[], None] | None = None,
) -> None:
    """Show a figure, with what it takes to save it.

    Args:
        figure: Of the library.
        name: Of the files.
        rows: The numbers that are drawn; no button if None.
        key: Of the chart.
        on_pick: Called when the reader picks a point; the selection is at `key` in the state.
    """
    config = {
        "displaylogo": False,
        "toImageButtonOptions": {"format": "png", "scale": 2, "filename": name},
    }
    if on_pick is None:
        st.plotly_chart(style.themed(figure), theme=None, key=key, config=config)
    else:
        st.plotly_chart(
            style.themed(figure),
            theme=None,
            key=key,
            config=config,
            on_select=on_pick,
            selection_mode=("points",),
        )
    if rows is not None:
        numbers(name, rows, key=key)


def numbers(name: str, rows: Rows, *, key: str) -> None:
    """A button that saves a table."""
    st.download_button(
        "Numbers as CSV",
        lambda: as_csv(rows()),
        f"{name}.csv",
        "text/csv",
        key=f"csv of {key}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
    )


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as text; what a spreadsheet would run as a formula is quoted.

    >>> as_csv([{"label": "=1+1", "x": 2}]).splitlines()
    ['label,x', "'=1+1,2"]
    """
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value
