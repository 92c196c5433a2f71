"""What does one latent mean, and what does it do?"""

import streamlit as st
from explorer import address, latent_panels, loaders, pages, panels, style, text

from saelab.atlas_figures import activation_figure, logit_figure, position_figure

name = address.text("run")
atlas = loaders.atlas(name) if name else None
if atlas is None:
    st.title("One latent")
    panels.empty(
        "This run has no atlas yet.",
        "An atlas records what every latent fires on and what it pushes; this page shows that.",
        f"saelab atlas {loaders.run(name).folder}" if name else "saelab quickstart",
    )
    st.stop()

latent = address.integer("latent", latent_panels.first_to_show(atlas), below=atlas.d_sae)
card = atlas.latent(latent)
summary = loaders.run(name)

latent_panels.title(card, name, atlas.d_sae)
panels.lead(
    f"Latent <b>{latent:,}</b> of {text.safe(summary.hook)} of {text.safe(summary.model)} fires on "
    f"<b>{panels.one_in(card.density)}</b> of the {atlas.n_tokens:,} measured"
    f"{f', at most <b>{card.max:.3g}</b>' if card.count else ''}."
)
if card.dead:
    panels.empty(
        "It never fired.",
        "On the text this atlas read it is dead: there is nothing to show but what it would push.",
    )

kinds = ["Strongest", "Equal intervals", "Quantiles", "Near misses"]
left, right = st.columns([0.62, 0.38], gap="large")
with left:
    kind = st.segmented_control(
        "Examples", kinds, default=kinds[0], key="examples", bind="query-params"
    )
    columns = st.columns(len(card.tails), gap="medium")
    for column, tail in zip(columns, card.tails, strict=True):
        with column:
            latent_panels.tail_heading(tail, card.signed)
            latent_panels.tail_examples(tail, kind or kinds[0], card.max)
    latent_panels.try_text(name, latent, card.max)
with right:
    for tail in card.tails:
        latent_panels.pushes(tail, card)
    if card.count:
        panels.heading("How strong, where it fires")
        st.plotly_chart(style.themed(activation_figure(card)), theme=None, key="activations")
    latent_panels.evidence(card)
    latent_panels.words(card)
    latent_panels.neighbors(card, name)
    with st.expander("Where in the text, and its whole logit effect"):
        if card.count:
            st.plotly_chart(style.themed(position_figure(card.tails)), theme=None, key="positions")
        if card.logit_histogram is not None:
            st.plotly_chart(
                style.themed(logit_figure(card.logit_histogram)), theme=None, key="logit"
            )
    latent_panels.notes(atlas, card)
    if card.count:
        pages.link("steering", "Steer with it", run=name, push=f"{latent}:{card.max:.3g}")
    pages.link("prompt", "See what fires on a text of yours", run=name)
