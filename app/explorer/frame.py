"""What stands beside every page: the run in use, the search box, the pages; and how errors look."""

import logging
from collections.abc import Callable

import streamlit as st
from explorer import address, loaders, pages, text

from saelab.errors import SaelabError

__all__ = ["guarded", "sidebar"]

_log = logging.getLogger("saelab.explorer")
_OF_ONE_RUN = (
    "area",
    "near",
    "page",
    "lobes",
    "lobe",
    "four",
    "family",
    "of",
    "how",
    "at",
    "end",
    "want",
    "without",
)
"""Parameters that mean nothing in another dictionary."""


def sidebar() -> None:
    """The run, the search box and the pages; on every page the same."""
    with st.sidebar:
        st.html('<div class="sl sl-name">saelab explorer</div>')
        found = loaders.runs()
        names = [name for name, one in found.items() if one.finished] or list(found)
        if names:
            if st.query_params.get("run") not in found:
                st.query_params["run"] = _preferred(names)
            _choose(names)
            _search()
        for name in pages.PAGES:
            pages.link(name, run=st.query_params.get("run"))
        _about()


def guarded(page: Callable[[], None]) -> None:
    """Run a page; a user's error is one message, anything else goes to the log as well."""
    try:
        page()
    except SaelabError as error:
        st.html(f'<div class="sl sl-empty">{text.safe(str(error))}</div>')
    except Exception:
        _log.exception("A page failed")
        st.error(
            "This page failed for a reason it did not expect. The log of the terminal that runs "
            "the explorer says more.",
            icon=":material/error:",
        )


def _choose(names: list[str]) -> None:
    current = st.query_params["run"]
    options = names if current in names else [*names, current]
    chosen = st.selectbox("Run", options, index=options.index(current), key=f"run of {current}")
    if chosen and chosen != current:
        for name in _OF_ONE_RUN:
            st.query_params.pop(name, None)
        st.query_params["run"] = chosen
        st.rerun()


def _search() -> None:
    st.text_input(
        "Search",
        key="search",
        placeholder="number, label, token or words",
        on_change=_note_search,
        icon=":material/search:",
    )
    wanted = st.session_state.pop("searched", "")
    if wanted.isdecimal():
        pages.go("latent", run=address.text("run"), latent=wanted)
    elif wanted:
        pages.go("latents", run=address.text("run"), find=wanted)


def _note_search() -> None:
    st.session_state["searched"] = st.session_state["search"].strip()
    st.session_state["search"] = ""


def _preferred(names: list[str]) -> str:
    with_atlas = [name for name in names if loaders.runs()[name].has_atlas]
    return (with_atlas or names)[0]


def _about() -> None:
    name = st.query_params.get("run")
    if name not in loaders.runs():
        return
    one = loaders.runs()[name]
    lines = [
        one.model and f"model {one.model}",
        one.hook,
        f"{one.family}, {one.d_sae:,} latents of width {one.d_in:,}",
        one.corpus and f"trained on {one.tokens:,} tokens of {one.corpus}",
    ]
    body = "<br>".join(text.safe(line) for line in lines if line)
    st.html(f'<div class="sl sl-small">{body}</div>')
