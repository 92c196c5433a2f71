"""Which pages are there? Each is a file in views/, named by the question it answers."""

from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["PAGES", "go", "link"]

_VIEWS = Path(__file__).parent.parent / "views"

PAGES = {
    "runs": st.Page(
        _VIEWS / "runs.py",
        title="Runs",
        icon=":material/stacked_line_chart:",
        url_path="runs",
        default=True,
    ),
    "latents": st.Page(
        _VIEWS / "latents.py", title="Latents", icon=":material/table_rows:", url_path="latents"
    ),
    "latent": st.Page(
        _VIEWS / "latent.py", title="One latent", icon=":material/target:", url_path="latent"
    ),
    "prompt": st.Page(
        _VIEWS / "prompt.py", title="Prompt", icon=":material/short_text:", url_path="prompt"
    ),
    "steering": st.Page(
        _VIEWS / "steering.py", title="Steering", icon=":material/tune:", url_path="steering"
    ),
    "circuits": st.Page(
        _VIEWS / "circuits.py",
        title="Circuits",
        icon=":material/account_tree:",
        url_path="circuits",
    ),
    "geometry": st.Page(
        _VIEWS / "geometry.py", title="Geometry", icon=":material/hub:", url_path="geometry"
    ),
    "data": st.Page(
        _VIEWS / "data.py", title="Data", icon=":material/library_books:", url_path="data"
    ),
    "compare": st.Page(
        _VIEWS / "compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"
    ),
}
"""Every page by the name its address ends in."""


def go(name: str, **parameters: Any) -> None:
    """Leave for another page; its whole state is in the parameters."""
    st.switch_page(PAGES[name], query_params=_given(parameters))


def link(name: str, label: str | None = None, **parameters: Any) -> None:
    """A link to another page."""
    page = PAGES[name]
    st.page_link(page, label=label or page.title, query_params=_given(parameters))


def _given(parameters: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if value is not None}
