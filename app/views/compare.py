"""Is this latent real? Two dictionaries side by side, and what one shares with the other."""

import streamlit as st
from explorer import address, loaders, panels, text

name = address.text("run")
st.title("Compare")
others = [other for other, one in loaders.runs().items() if one.has_atlas and other != name]
atlas = loaders.atlas(name) if name else None
if atlas is None or not others:
    panels.empty(
        "Comparing needs two runs with an atlas.",
        "A latent that another seed, width or family finds again is more likely to be the model's.",
        f"saelab atlas {loaders.run(name).folder}"
        if name and atlas is None
        else "saelab atlas RUN",
    )
    st.stop()
other_name = st.selectbox("With", others, key="with", bind="query-params") or others[0]
other = loaders.atlas(other_name)
if other is None:
    st.stop()
found = loaders.comparison(name, other_name)
panels.lead(
    f"Of the latents of <b>{text.safe(name)}</b>, <b>{found.shared:.0%}</b> have a counterpart in "
    f"<b>{text.safe(other_name)}</b> (similarity above {found.threshold:.2f}); matching at random "
    f"would give {found.shared_null:.1%}."
)
table = found.table
st.dataframe(
    table,
    hide_index=True,
    height=300,
    on_select="rerun",
    selection_mode="single-row",
    key=f"matches of {other_name}",
)
picked = st.session_state[f"matches of {other_name}"]["selection"]["rows"]
row = table.iloc[picked[0] if picked else 0]
columns = st.columns(2, gap="large")
pairs = ((name, atlas, int(row["latent"])), (other_name, other, int(row["other"])))
for column, (run, opened, latent) in zip(columns, pairs, strict=True):
    with column:
        card = opened.latent(latent)
        panels.heading(card.label or f"latent {latent}", f"{run}, {panels.one_in(card.density)}")
        st.html(
            f'<div class="sl sl-small">{panels.latent_link(latent, run, "open its page")}</div>'
        )
        for tail in card.tails:
            panels.examples(tail.top()[:6], card.max)
