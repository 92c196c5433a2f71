"""What is in here? Every latent of a dictionary, to filter, sort and map."""

import streamlit as st
from explorer import address, loaders, map_panel, pages, panels, role_panel, text

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

left, right = st.columns([0.56, 0.44], gap="medium")
with right:
    layout, color = map_panel.controls(atlas)
    map_panel.show(name, atlas, layout, color)

conditions, parameters = [], []
if HOW_OFTEN.get(often or "any"):
    conditions.append(str(HOW_OFTEN[often]))
if starred:
    conditions.append("starred")
hits = atlas.search(find, limit=400) if find else []
on_map = map_panel.chosen(name, layout, atlas.d_sae)
for some in ([hit.latent for hit in hits] if find else None, on_map):
    if some is not None:
        conditions.append("latent IN (SELECT unnest(?))")
        parameters.append(some)
where = " AND ".join(conditions) or None
total = atlas.count(where, parameters=parameters)
n_pages = max(1, -(-total // PER_PAGE))
page = min(address.integer("page", 1, below=1_000_000) or 1, n_pages)

with left:
    shown = atlas.latents(
        where,
        SORTS[sort or next(iter(SORTS))],
        PER_PAGE,
        (page - 1) * PER_PAGE,
        parameters=parameters,
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
        key=f"table {where} {find} {len(on_map or [])} {sort} {page}",
        column_config={
            "fires on": st.column_config.NumberColumn(format="percent"),
            "peak": st.column_config.NumberColumn(format="%.2f"),
            "latent": st.column_config.NumberColumn(width=60),
            "label": st.column_config.TextColumn(width=180),
        },
    )
    chosen_there = " chosen on the map" if on_map is not None else ""
    st.html(f'<div class="sl sl-small">{total:,} latents{chosen_there}; pick one to open it.</div>')
    if on_map is not None:
        st.button("Let go of what was chosen on the map", on_click=map_panel.let_go, key="let go")
    if n_pages > 1:
        st.pagination(n_pages, key="page", bind="query-params")
    if chosen["selection"]["rows"]:
        latent = int(table.iloc[chosen["selection"]["rows"][0]]["latent"])
        pages.go("latent", run=name, latent=latent)

role_panel.show(name)
