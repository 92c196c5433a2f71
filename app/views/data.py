"""How do these texts differ, and which are about this? Collections compared and searched."""

import streamlit as st
from explorer import (
    address,
    collection_loaders,
    collection_panels,
    difference_panels,
    loaders,
    panels,
    text,
)

name = address.text("run")
st.title("Data")
found = collection_loaders.collections(name) if name else []
if not found:
    panels.empty(
        "This run has read no collection of documents yet.",
        "Documents as latents can be compared (what is in these texts and not in those?) and "
        "searched by concept, whatever words they use.",
        f"saelab documents {loaders.run(name).folder} --max-rows 4"
        if name
        else "saelab quickstart",
    )
    st.stop()
bar = st.columns([0.24, 0.3, 0.46], vertical_alignment="bottom")
part = bar[0].segmented_control(
    "What to do",
    ["Compare", "Search"],
    default="Compare",
    key="part",
    bind="query-params",
    label_visibility="collapsed",
)
asked = address.text("of", found[0], longest=200)
chosen = bar[1].selectbox(
    "Collection", found, index=found.index(asked) if asked in found else 0, key="collection"
)
collection = chosen or found[0]
if collection != asked:
    st.query_params["of"] = collection
documents = collection_loaders.documents(name, collection)
panels.lead(
    f"<b>{len(documents):,}</b> documents of {text.safe(collection)}, "
    f"{int(documents.n_tokens.sum()):,} tokens, as latents of {text.safe(loaders.run(name).hook)} "
    f"of {text.safe(loaders.run(name).model)}."
)
if part == "Search":
    collection_panels.search(name, collection)
else:
    difference_panels.compare(name, collection, found)
