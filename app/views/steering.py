"""What changes if I push latents, and what does it cost?"""

import streamlit as st
from explorer import address, latent_panels, loaders, panels, steering_panels, text
from explorer.pushes import HOW, parsed, written

name = address.text("run")
st.title("Steering")
if not name:
    panels.empty("There is no run.", "Steering needs a dictionary.", "saelab quickstart")
    st.stop()
summary, atlas = loaders.run(name), loaders.atlas(name)
panels.lead(
    f"Push latents of {text.safe(summary.hook)} while {text.safe(summary.model)} writes. What the "
    "dictionary does not explain stays in place; the model's first token is left alone."
)
pushes = parsed(address.text("push", longest=400), summary.d_sae)
if not pushes:
    latent = latent_panels.first_to_show(atlas) if atlas is not None else 0
    pushes = ((latent, steering_panels.strongest(atlas, latent)),)

left, right = st.columns([0.34, 0.66], gap="large")
with left:
    how = st.selectbox(
        "What to do",
        list(HOW),
        key="how",
        bind="query-params",
        help="Add a strength along the latent's direction, hold its activation, or multiply its "
        "own; 0 switches it off.",
    )
    how = how or "add"
    with st.form("steer", border=False):
        wanted = steering_panels.sliders(name, atlas, how, pushes)
        prompt = st.text_area(
            "Text to go on from", "The old harbour was silent until", key="text",
            bind="query-params", max_chars=2000, height=90,
        )  # fmt: skip
        n_tokens = st.slider("Tokens to write", 5, 80, 30, key="tokens", bind="query-params")
        st.form_submit_button("Steer", type="primary")
    # What the address will say, so that the next run finds the same numbers and computes nothing.
    wanted = parsed(written(wanted), summary.d_sae)
    st.query_params["push"] = written(wanted)
    steering_panels.add_latent(atlas, summary.d_sae, wanted)
if not prompt.strip():
    with right:
        panels.empty("There is no text.", "The model needs a beginning to go on from.")
    st.stop()
with right:
    found = loaders.steered(name, how, wanted, prompt, n_tokens)
    steering_panels.texts(found)
    steering_panels.tokens_after(found)
steering_panels.cost(name, atlas, how, wanted, prompt)
steering_panels.take_away(name, how, wanted)
steering_panels.snippet(name, how, wanted, prompt)
