"""The parts of the prompt page: one token's latents, what they speak for, and what is missed."""

import streamlit as st
from explorer import address, loaders, panels, text

from saelab.errors import SaelabError
from saelab.prompts import PromptReading

__all__ = ["error_of", "expected", "latents_of", "target"]

N_LATENTS = 16


def target(reading: PromptReading, token: int) -> tuple[int, str]:
    """The next token whose logit is taken apart: the likeliest, unless the reader chose."""
    ids = [int(one) for one in reading.next_ids[token]]
    names = dict(zip(ids, reading.next_tokens[token], strict=True))
    asked = address.integer("next", ids[0], below=10**7)
    chosen = st.selectbox(
        "Next token to explain",
        ids,
        index=ids.index(asked) if asked in ids else 0,
        format_func=lambda one: text.plain(names[one]),
        help="The effects beside are on the logit of this one.",
        key=f"next of {token} {ids}",
    )
    st.query_params["next"] = str(chosen)
    return chosen, names[chosen]


def expected(reading: PromptReading, token: int) -> None:
    """What the model expects next."""
    panels.heading("What the model expects next")
    found = zip(reading.next_tokens[token], reading.next_probabilities[token].tolist(), strict=True)
    panels.table(
        ["token", "probability"],
        [[f"<bdi>{text.shown(word)}</bdi>", f"{share:.1%}"] for word, share in found],
        {1},
    )


def error_of(reading: PromptReading, token: int) -> None:
    """What the dictionary misses of one token, and of all."""
    panels.heading("What the dictionary misses")
    whole = float(reading.error_share[reading.first :].mean())
    panels.stats(
        [
            ("of this token's activation", f"{float(reading.error_share[token]):.1%}"),
            ("mean over the text", f"{whole:.1%}"),
        ]
    )


def latents_of(
    name: str,
    words: str,
    reading: PromptReading,
    token: int,
    wanted: tuple[int, str],
    labels: dict[int, str],
) -> None:
    """The latents of one token, with the effect of each on the next."""
    try:
        found = loaders.effects(name, words, token, wanted[0])
        effects = dict(found.by_latent)
    except SaelabError as error:
        found, effects = None, {}
        st.html(f'<div class="sl sl-small">{text.safe(str(error))}</div>')
    orders = ["what they write", *(["effect on the next token"] if found else [])]
    order = st.segmented_control(
        "Its latents, by", orders, default=orders[0], key="order", bind="query-params"
    )
    some = reading.strongest(token, len(effects) or N_LATENTS)
    if order == orders[-1] and found:
        some = sorted(some, key=lambda one: -abs(effects[one.latent]))
    rows = [
        [
            panels.latent_link(one.latent, name),
            text.safe(labels.get(one.latent, "")),
            f"{one.value:+.3g}",
            f"{one.share:.1%}",
            f"{effects[one.latent]:+.2f}" if found else "–",
        ]
        for one in some[:N_LATENTS]
    ]
    columns = ["latent", "label", "activation", "share", f"to ‹{wanted[1][:16]}›, logits"]
    panels.table(columns, rows, {2, 3, 4})
    if found:
        st.html(
            '<div class="sl sl-small">Direct effect through the frozen final norm, relative to the '
            f"mean over the vocabulary: all its latents {found.latents:+.2f}, what the dictionary "
            f"misses {found.error:+.2f}, its bias {found.bias:+.2f}, everything else "
            f"{found.rest:+.2f}; together {found.total:+.2f} logits. What later layers make of a "
            "latent is counted with everything else.</div>"
        )
