"""What is in here? Every latent of a dictionary, to filter, sort and map."""

import streamlit as st
from explorer import address, loaders, pages, panels, style, text

from saelab.atlas_figures import latent_map

name = address.text("run")
st.title("Latents")
atlas = loaders.atlas(name) if name else None
if atlas is None:
    panels.empty(
        "This run has no atlas yet.",
        "An atlas records what every latent fires on and what it pushes; browsing needs one.",
        f"saelab atlas {loaders.run(name).folder}" if name else "saelab quickstart",
    )
    st.stop()
about = atlas.about
panels.lead(
    f"<b>{atlas.d_sae:,}</b> latents of {text.safe(loaders.run(name).hook)} of "
    f"{text.safe(loaders.run(name).model)}, measured on <b>{atlas.n_tokens:,}</b> tokens."
)

SORTS = {
    "how often it fires": "density DESC",
    "how rarely it fires": "count = 0, density",
    "strongest activation": "strongest DESC",
    "best automatic label": "auto_score_name, auto_score DESC",
    "few tokens pushed hard": "logit_kurtosis DESC",
    "nearest neighbour": "nearest_cosine DESC",
    "number": "latent",
}
HOW_OFTEN = {
    "any": None,
    "over 10%": "density > 0.1",
    "1% to 10%": "density BETWEEN 0.01 AND 0.1",
    "0.1% to 1%": "density BETWEEN 0.001 AND 0.01",
    "under 0.1%": "count > 0 AND density < 0.001",
    "never": "count = 0",
}
PER_PAGE = 100

bar = st.columns([0.4, 0.2, 0.24, 0.16], vertical_alignment="bottom")
find = bar[0].text_input(
    "Find", key="find", bind="query-params", placeholder="label, token, words of an example"
)
often = bar[1].selectbox("Fires on", list(HOW_OFTEN), key="often", bind="query-params")
sort = bar[2].selectbox("Sorted by", list(SORTS), key="sort", bind="query-params")
starred = bar[3].toggle("Starred", key="starred", bind="query-params")

conditions = []
if HOW_OFTEN.get(often or "any"):
    conditions.append(str(HOW_OFTEN[often]))
if starred:
    conditions.append("starred")
hits = atlas.search(find, limit=400) if find else []
if find:
    conditions.append(f"latent IN ({', '.join(str(int(hit.latent)) for hit in hits) or '-1'})")
box = st.session_state.get("map", {}).get("selection", {}).get("points", [])
if box:
    conditions.append(f"latent IN ({', '.join(str(int(p['customdata'][0])) for p in box)})")
where = " AND ".join(conditions) or None
total = atlas.count(where)
n_pages = max(1, -(-total // PER_PAGE))
page = min(address.integer("page", 1, below=1_000_000) or 1, n_pages)

left, right = st.columns([0.62, 0.38], gap="large")
with left:
    shown = atlas.latents(
        where,
        SORTS[sort or next(iter(SORTS))],
        PER_PAGE,
        (page - 1) * PER_PAGE,
    )
    columns = {
        "latent": "latent",
        "label": "label",
        "density": "fires on",
        "strongest": "peak",
        "top_token_pos": "fires most on",
        "promoted": "promotes",
        "starred": "★",
    }
    if atlas.signed:
        columns["top_token_neg"] = "negative side on"
    table = shown[list(columns)].set_axis(list(columns.values()), axis=1)
    chosen = st.dataframe(
        table,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        height=620,
        key=f"table {where} {sort} {page}",
        column_config={
            "fires on": st.column_config.NumberColumn(format="percent"),
            "peak": st.column_config.NumberColumn(format="%.2f"),
            "label": st.column_config.TextColumn(width="medium"),
        },
    )
    st.html(f'<div class="sl sl-small">{total:,} latents; pick one to open it.</div>')
    if n_pages > 1:
        st.pagination(n_pages, key="page", bind="query-params")
    if chosen["selection"]["rows"]:
        latent = int(table.iloc[chosen["selection"]["rows"][0]]["latent"])
        pages.go("latent", run=name, latent=latent)
with right:
    figure = style.themed(latent_map(loaders.latents(name)))
    st.plotly_chart(
        figure, theme=None, key="map", on_select="rerun", selection_mode=("box", "lasso")
    )
    st.html(
        '<div class="sl sl-small">Every latent that fires: how often against how strongly. Draw a '
        "box or a lasso to filter the table; double-click to let go.</div>"
    )
