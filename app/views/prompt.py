"""What does the dictionary see in a text of yours?"""

import streamlit as st
from explorer import address, loaders, panels, prompt_panels, style, text

from saelab.atlas_figures import prompt_figure

name = address.text("run")
st.title("Prompt")
if not name:
    panels.empty("There is no run.", "Reading a text needs a dictionary.", "saelab quickstart")
    st.stop()
summary = loaders.run(name)
panels.lead(
    f"The strongest latents of {text.safe(summary.hook)} of {text.safe(summary.model)} on every "
    "token of a text; each row of the strip is shaded on its own maximum. Choose a token to see "
    "its latents, and what each adds to the next one."
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
    reading.error_share[reading.first :].tolist(),
)
st.plotly_chart(style.themed(figure), theme=None, key="strip")
missed = reading.error_share[reading.first :]
st.html(
    f'<div class="sl sl-small">Under the strip: the share of each token that the dictionary '
    f"misses, {float(missed.mean()):.1%} on average.</div>"
)

options = list(range(reading.first, n))
asked = address.integer("token", n - 1, below=10**6)  # a new text may be shorter
token = st.pills(
    "Token",
    options,
    format_func=lambda place: text.plain(reading.tokens[place]),
    default=asked if asked in options else options[-1],
    key=f"token of {words[:40]}",
)
if token is None:
    st.stop()
st.query_params["token"] = str(token)
left, right = st.columns([0.62, 0.38], gap="large")
with right:
    target = prompt_panels.target(reading, token)
    prompt_panels.expected(reading, token)
    prompt_panels.error_of(reading, token)
with left:
    prompt_panels.latents_of(name, words, reading, token, target, labels)
