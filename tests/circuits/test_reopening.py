"""A saved graph against the running model: what it says of a latent is measured again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saelab.circuits import TraceConfig, measured_effects, reopen, trace_terms
from saelab.circuits.targets import read_out
from saelab.errors import ConfigError, DataError
from saelab.graphs import AttributionGraph
from tests.circuits.circuit_cases import (
    MAKERS,
    PROMPT,
    autoencoder,
    cross_layer,
    model_of,
    transcoder,
    transcoders,
)

CONFIG = TraceConfig(max_latents=8)


@pytest.mark.parametrize("name", MAKERS)
def test_a_graph_from_disk_measures_what_its_trace_measured(name: str, tmp_path: Path) -> None:
    traced = trace_terms(model_of(name), transcoders(), PROMPT, CONFIG)
    graph = AttributionGraph.load(traced.graph().prune(0.7).save(tmp_path / "g.json"))
    opened = reopen(model_of(name), transcoders(), graph)
    latents = [node for node in graph.nodes if node.kind == "latent"]
    here = traced.replacement
    readouts = [read_out(here.map.head, traced.targets, len(PROMPT) - 1)]
    for node in latents[:2]:
        keys = zip(*(one.tolist() for one in here.latents.places()), strict=True)
        hooks = [layer.hook for layer in here.dictionaries.layers]
        there = [(hooks[site], at, index) for site, at, index in keys]
        place = there.index((str(node.hook), int(node.position or 0), int(node.index or 0)))
        for held in (True, False):
            expected = measured_effects(here, {place: 0.0}, readouts, hold_patterns=held)
            found = opened.measured({node.id: 0.0}, hold_patterns=held)
            assert torch.allclose(found, expected, atol=1e-9)
            assert float(found.abs().max()) > 1e-6


def test_a_difference_of_tokens_is_found_again_by_its_name() -> None:
    model = model_of("llama")
    traced = trace_terms(model, transcoders(), PROMPT, CONFIG, targets=[("b", "a"), ("-", " ")])
    graph = traced.graph()
    opened = reopen(model, transcoders(), graph)
    values = opened.replacement.values(list(opened.read_outs))
    known = graph.totals[graph.of_kind("target")]
    assert torch.allclose(values.double(), known, atol=1e-9)


@pytest.mark.parametrize("dictionaries", [cross_layer, lambda: [autoencoder("resid_mid")]])
def test_every_kind_of_dictionary_is_opened_again(dictionaries) -> None:
    made = (
        dictionaries() if dictionaries is cross_layer else [autoencoder("blocks.1.hook_resid_mid")]
    )
    graph = trace_terms(model_of("gpt2"), made, PROMPT, CONFIG).graph()
    opened = reopen(model_of("gpt2"), made, graph)
    assert set(opened.places) == {node.id for node in graph.nodes if node.kind == "latent"}


def test_words_are_those_that_the_decoder_direction_promotes() -> None:
    model = model_of("llama")
    graph = trace_terms(model, transcoders(), PROMPT, CONFIG).graph()
    opened = reopen(model, transcoders(), graph)
    nodes = [node for node in graph.nodes if node.kind == "latent"]
    found = opened.promoted([*(node.id for node in nodes), "nowhere"], n=3, among=20)
    assert set(found) == {node.id for node in nodes}
    node = nodes[0]
    sae = transcoders()[0 if node.layer == 0 else 1]
    direction = sae.W_dec[node.index].detach() * (1 if (node.value or 0) > 0 else -1)
    likely = opened.replacement.map.logits.topk(20).indices.tolist()
    effects = model.logit_effects(direction[None])[0]
    best = sorted(likely, key=lambda token: -float(effects[token]))[:3]
    assert found[node.id] == tuple(model.token_strings(best))
    everything = opened.promoted([node.id], n=1, among=10**6)
    assert everything[node.id] == tuple(model.token_strings([int(effects.argmax())]))
    assert opened.promoted([]) == {}


def test_a_graph_of_another_model_or_other_dictionaries_is_refused() -> None:
    model = model_of("llama")
    graph = trace_terms(model, transcoders(), PROMPT, CONFIG).graph()
    other = [transcoder(0, seed=9, skip=True), transcoder(2, seed=9)]
    with pytest.raises(DataError, match="traced with others"):
        reopen(model, other, graph)
    with pytest.raises(DataError, match="not tokens of"):
        reopen(model, transcoders(), replace(graph, token_ids=(10**6,) * len(graph.tokens)))
    with pytest.raises(DataError, match="cannot be found again"):
        nameless = graph.with_labels({graph.nodes[-1].id: "x"})
        nodes = (*nameless.nodes[:-1], replace(nameless.nodes[-1], kind="target", index=None))
        reopen(model, transcoders(), replace(nameless, nodes=nodes))
    with pytest.raises(ConfigError, match="no latent of this graph"):
        reopen(model, transcoders(), graph).measured({"E_1_0": 0.0})
