"""What are the latents for? Roles found by probes.neuron_roles, below the table of latents."""

import streamlit as st
from explorer import loaders, panels, text

from saelab.probing import SavedRoles, UnitRole

__all__ = ["show"]

MEANING = {
    "dead": "never fires on that text",
    "rare": "fires too rarely for a role",
    "token": "fires on a few tokens, and on nearly all their occurrences",
    "bigram": "the same of two tokens in a row",
    "trigram": "the same of three",
    "positional": "fires by its place in the row",
    "other": "none of these",
}
DETECTORS = ("token", "bigram", "trigram", "positional")
SHOWN = 40
"""Latents of a role in the table."""


def show(name: str) -> None:
    """The roles of a run's latents, or how to find them; nothing is computed here."""
    with st.expander("Roles: detectors of tokens, of pairs, of positions"):
        saved = loaders.roles(name)
        if saved is None:
            folder = loaders.run(name).folder
            why = (
                "Nobody has looked for roles yet: which latents are dead, detect a token or a pair "
                "of tokens, or follow the position, beside what shuffled text gives."
            )
            st.html(f'<div class="sl sl-small">{why}</div>')
            command = f"python -m probes.neuron_roles --dictionary {folder}"
            st.code(f"{command} --out {folder}/roles.json", language="bash")
            return
        left, right = st.columns([0.42, 0.58], gap="large")
        with left:
            _counts(saved)
        with right:
            _detectors(saved, name)


def _counts(saved: SavedRoles) -> None:
    """How many latents have each role, beside the control."""
    units, counts = len(saved.roles.units), saved.roles.counts()
    rows = [
        (
            f"<b>{text.safe(role)}</b>",
            f"{count:,}",
            f"{count / max(1, units):.1%}",
            f"{saved.control[role]:,}",
            text.safe(MEANING.get(role, "")),
        )
        for role, count in counts.items()
    ]
    panels.table(("role", "latents", "share", "on shuffled text", ""), rows, {1, 2, 3})
    known = [one for one in saved.roles.units if one.trigger_effect is not None]
    lowering = (
        f"; {len(saved.roles.suppressors):,} of {len(known):,} detectors lower the logits of "
    )
    st.html(
        f'<div class="sl sl-small">{saved.roles.n_tokens:,} tokens at '
        f"{text.safe(saved.hook)}{lowering + 'their own triggers' if known else ''}.</div>"
    )


def _detectors(saved: SavedRoles, name: str) -> None:
    """The latents of one role, those that fire most first."""
    there = [role for role in DETECTORS if saved.roles.counts()[role]]
    if not there:
        st.html('<div class="sl sl-small">No latent detects a token or follows the position.</div>')
        return
    role = st.segmented_control("Role", there, default=there[0], key="role") or there[0]
    some = sorted(
        (one for one in saved.roles.units if one.role == role), key=lambda one: -one.density
    )
    rows = [
        (
            panels.latent_link(one.unit, name),
            _what(saved, one),
            f"{one.density:.2%}",
            "" if one.trigger_effect is None else f"{one.trigger_effect:+.2f}",
        )
        for one in some[:SHOWN]
    ]
    panels.table(("latent", "detects", "fires on", "effect on it"), rows, {2, 3})
    if len(some) > SHOWN:
        st.html(f'<div class="sl sl-small">{SHOWN} of {len(some):,}, those that fire most.</div>')


def _what(saved: SavedRoles, one: UnitRole) -> str:
    """Triggers, or the pattern of positions, as safe HTML."""
    if one.role == "positional":
        return text.safe(f"{one.pattern}, {one.information:.2f} nats")
    words = ", ".join(repr(word) for word in saved.texts.get(one.unit, ()))
    return text.safe(words[:160])
