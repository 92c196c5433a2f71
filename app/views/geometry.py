"""How are concepts arranged? Lobes, crystals, families and the galaxy, each beside chance."""

import streamlit as st
from explorer import (
    address,
    crystal_panels,
    family_panels,
    galaxy_panels,
    loaders,
    lobe_panels,
    panels,
    text,
)

name = address.text("run")
st.title("Geometry")
survey = loaders.survey(name) if name else None
if survey is None:
    panels.empty(
        "The geometry of this dictionary was not measured yet.",
        "It says which latents occur together and lie together, whether relations between words "
        "are directions, what splits in a wider dictionary, and what shape the whole cloud has.",
        f"saelab geometry {loaders.run(name).folder}" if name else "saelab quickstart",
    )
    st.stop()
about = survey.about
panels.lead(
    f"<b>{about['n_alive']:,}</b> latents of {text.safe(str(about['hook']))} of "
    f"{text.safe(str(about['model']))} that fire on <b>{about['n_tokens']:,}</b> tokens of "
    f"{text.safe(str(about['corpus']) or 'a text')}. Noise has lobes and slopes too, so every "
    "number stands beside what chance gives."
)
PARTS = {
    "Lobes": lobe_panels.show,
    "Crystals": crystal_panels.show,
    "Families": family_panels.show,
    "Galaxy": galaxy_panels.show,
}
part = st.segmented_control(
    "What to look at",
    list(PARTS),
    default="Lobes",
    key="part",
    bind="query-params",
    label_visibility="collapsed",
)
PARTS[part or "Lobes"](name, survey)
