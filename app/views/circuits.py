"""How did the model get to that answer? One graph: the prompt across, layers upward."""

import streamlit as st
from explorer import (
    address,
    circuit_choice,
    circuit_panels,
    circuit_views,
    graph_files,
    node_panels,
    what_if_panels,
)

name = address.text("run")
st.title("Circuits")
asked = circuit_choice.choose(name)
if asked is None:
    st.stop()
graph = circuit_choice.opened(asked)
circuit_panels.lead(asked, graph)
view, kind = circuit_panels.controls(asked, graph)
shown = circuit_views.shown(view)
node = circuit_panels.selected(graph, shown)

circuit_panels.numbers(asked, graph, shown)
left, right = st.columns([0.6, 0.4], gap="medium")
with left:
    circuit_panels.figure(view, kind, node)
    what_if_panels.change(asked, graph, node)
with right:
    node_panels.card(view, graph, shown, node)
    node_panels.inputs_and_outputs(graph, shown, node)

st.subheader("Does the model agree?")
what_if_panels.check(asked, graph, shown)
st.subheader("Which nodes belong together?")
circuit_panels.groups(view, shown, node)
st.subheader("Take it away")
graph_files.downloads(shown)
