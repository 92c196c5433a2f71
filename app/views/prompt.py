"""What does the dictionary see in a text of yours?"""

import streamlit as st
from explorer import address, loaders, panels, style, text

from saelab.atlas_figures import prompt_figure

name = address.text("run")
st.title("Prompt")
if not name:
    panels.empty("There is no run.", "Reading a text needs a dictionary.", "saelab quickstart")
    st.stop()
summary = loaders.run(name)
panels.lead(
    f"The strongest latents of {text.safe(summary.hook)} of {text.safe(summary.model)} on every "
    "token of a text. Choose a token to list its latents; each row of the strip is shaded on its "
    "own maximum."
)
with st.form("prompt", border=False):
    words = st.text_area(
        "Text",
        "The old harbour was silent until the ships came home from the war.",
        key="text",
        bind="query-params",
        max_chars=6000,
        height=90,
    )
    st.form_submit_button("Read it")
if not words.strip():
    st.stop()

reading = loaders.prompt(name, words)
atlas = loaders.atlas(name)
labels = {} if atlas is None else atlas.labels([latent for latent, *_ in reading.ranked(200)])
n = len(reading.tokens)
ranked = reading.ranked(14)


def named(latent: int) -> str:
    """A latent with its label, as plain text."""
    label = labels.get(latent, "")
    return f"{latent}  {label[:34]}".strip()


figure = prompt_figure(
    reading.tokens[reading.first :],
    [(named(latent), reading.over_text(latent)[reading.first :]) for latent, *_ in ranked],
)
st.plotly_chart(style.themed(figure), theme=None, key="strip")

options = list(range(reading.first, n))
asked = address.integer("token", reading.first, below=max(n, 1))
token = st.pills(
    "Token",
    options,
    format_func=lambda place: text.plain(reading.tokens[place]),
    default=asked if asked in options else options[-1],
    key=f"token of {words[:40]}",
)
if token is None:
    st.stop()
left, right = st.columns([0.6, 0.4], gap="large")
with left:
    panels.heading("Its latents", "by their share of the token's code")
    rows = [
        [
            panels.latent_link(one.latent, name),
            text.safe(labels.get(one.latent, "")),
            f"{one.value:+.3g}",
            f"{one.share:.1%}",
        ]
        for one in reading.strongest(token, 16)
    ]
    panels.table(["latent", "label", "activation", "share"], rows, {2, 3})
with right:
    panels.heading("What the model expects next")
    expected = zip(
        reading.next_tokens[token], reading.next_probabilities[token].tolist(), strict=True
    )
    panels.table(
        ["token", "probability"],
        [[f"<bdi>{text.shown(word)}</bdi>", f"{share:.1%}"] for word, share in expected],
        {1},
    )
    panels.heading("What the dictionary misses")
    missed = float(reading.error_share[token])
    whole = float(reading.error_share[reading.first :].mean())
    panels.stats(
        [("of this token's activation", f"{missed:.1%}"), ("mean over the text", f"{whole:.1%}")]
    )
