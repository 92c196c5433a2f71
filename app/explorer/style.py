"""How does the explorer look? One stylesheet, with colors for light and for dark."""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from saelab.plots import template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["inject", "is_dark", "themed"]


def is_dark() -> bool:
    """Whether the reader's theme is dark."""
    return st.context.theme.type == "dark"


def inject() -> None:
    """Put the stylesheet and the theme's colors on the page."""
    css = (Path(__file__).parent / "explorer.css").read_text(encoding="utf-8")
    st.html(f"<style>{_DARK if is_dark() else _LIGHT}\n{css}</style>")


_LIGHT = """:root { --sl-ink: #1d2126; --sl-quiet: #667079; --sl-line: #e2e0da;
--sl-surface: #ffffff; --sl-accent: #0e7c72; --sl-pos: 217 115 13; --sl-neg: 44 111 187; }"""
_DARK = """:root { --sl-ink: #e8e6e1; --sl-quiet: #98a1a9; --sl-line: #2f353b;
--sl-surface: #1f2327; --sl-accent: #5cc9bb; --sl-pos: 232 138 48; --sl-neg: 92 156 224; }"""


def themed(figure: "Figure") -> "Figure":
    """A figure of the library in the reader's theme."""
    return figure.update_layout(template=template(is_dark()))
