"""What must hold across methods, whatever the model: sums, symmetries, identities.

1 sums over terms close           5 edges of EAP sum to a slope     9 all and nothing
2 the map is the model            6 influence is conserved         10 names do not matter
3 estimates are exact if linear   7 DFA is complete                11 units do not matter
4 edges sum to node effects       8 pairs sum to the score         12 files keep the graph
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelab.attention_circuits import DirectAttribution
from saelab.circuits import (
    EffectsConfig,
    LocalReplacement,
    LogitTarget,
    TraceConfig,
    attention_score,
    direct_effects,
    faithfulness_curve,
    feature_edges,
    feature_effects,
    trace,
    trace_terms,
)
from saelab.circuits.feature_sites import FeatureNode
from saelab.graphs import AttributionGraph, Edge, Node, read_viewer_json
from saelab.models import load_model
from saelab.patching import edge_attribution
from saelab.sae import SAE
from tests.circuits.circuit_cases import (
    MAKERS,
    N_LATENTS,
    PROMPT,
    autoencoder,
    every_readout,
    model_of,
    residual,
    transcoder,
    transcoders,
)
from tests.circuits.test_feature_circuits import (
    CLEAN,
    PATCH,
    difference,
    exact,
    linear_model,
    linear_sites,
)
from tests.patching.patching_cases import experiment_of

ALL = pytest.mark.parametrize("name", MAKERS)
CONFIG = TraceConfig(max_logits=3)
FIRST_ORDER = EffectsConfig(method="attribution")


@ALL
def test_latents_logits_queries_and_keys_are_the_sum_of_their_terms(name: str) -> None:
    replacement = LocalReplacement(model_of(name), transcoders(), PROMPT)
    readouts = every_readout(replacement)
    assert residual(replacement, readouts) < 1e-10
    parts = replacement.decompose(readouts)
    values = replacement.values(readouts).double()
    # Latents, errors and tokens alone are far from the whole.
    part = parts.latents.sum(1) + parts.errors.sum((1, 2)) + parts.tokens.sum(1)
    assert float((values - part).abs().max()) > 0.1


@ALL
def test_the_map_is_the_model_on_its_prompt(name: str) -> None:
    model = model_of(name)
    width = model.hook_point("blocks.1.attn.hook_z").width or 0
    saes = [*transcoders(), autoencoder("blocks.1.attn.hook_z", width)]
    hooks = ["blocks.2.mlp.hook_in", "blocks.1.attn.hook_z", "blocks.2.attn.hook_in"]
    replacement = LocalReplacement(model, saes, PROMPT, reads=hooks)
    own = model.activations(PROMPT[None], hooks)
    # Some models cast to single precision inside their norms or softmax whatever their type.
    tolerance = 1e-12 if name in ("gpt2", "neox") else 1e-5
    for hook in hooks:
        assert torch.allclose(replacement.map.reads[hook], own[hook][0], atol=tolerance)
    assert torch.allclose(replacement.map.logits, model.logits(PROMPT[None])[0, -1], atol=1e-5)


def test_in_a_linear_model_estimated_effects_are_the_exact_ones() -> None:
    for config in (FIRST_ORDER, EffectsConfig(steps=1, rule="left"), EffectsConfig(steps=3)):
        found = feature_effects(linear_model(), linear_sites(), CLEAN, difference, PATCH, config)
        for site in linear_sites():
            large = [one for one in found.nodes(1e-6).items() if one[0].hook == site.hook][:3]
            assert large
            for node, effect in large:
                assert effect == pytest.approx(exact(site, node, difference), abs=1e-10)


def test_edges_of_a_feature_circuit_sum_to_the_effect_of_their_source() -> None:
    sites = linear_sites()
    every = [
        FeatureNode(site.hook, None, latent)
        for site in sites
        for latent in (*range(site.sae.d_sae), None)
    ]
    effects = feature_effects(linear_model(), sites, CLEAN, difference, PATCH, FIRST_ORDER)
    edges = feature_edges(linear_model(), sites, every, CLEAN, difference, PATCH)
    for node, effect in effects.nodes(1e-9).items():
        total = sum(value for edge, value in edges.items() if edge.source == node)
        assert total == pytest.approx(effect, abs=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_patching_edges_out_of_a_component_sum_to_its_first_order_effect(name: str) -> None:
    one = experiment_of(name)
    scores = edge_attribution(one, FIRST_ORDER).nodes()
    pairs, hook = one.pairs, one.parts[1].mlp_out
    moved = (one.writes(pairs.patch)[0] - one.writes(pairs.clean)[0])[one.graph.senders.index("m1")]
    leaf = torch.zeros_like(moved).requires_grad_()
    with torch.enable_grad(), one.model.editing({hook: lambda x: x + leaf}):
        value = pairs.measured(one.model.whole_pass(pairs.clean)[0][:, -1]).mean()
        (slope,) = torch.autograd.grad(value, [leaf])
    assert scores.of("m1") == pytest.approx(float((slope * moved).sum()), rel=1e-4)
    assert abs(scores.of("m1")) > 1e-3


@ALL
def test_heads_value_biases_and_an_offset_are_all_that_a_latent_of_heads_reads(name: str) -> None:
    width = model_of(name).hook_point("blocks.1.attn.hook_z").width or 0
    sae = autoencoder("blocks.1.attn.hook_z", width)
    replacement = LocalReplacement(model_of(name), sae, PROMPT, cut_heads=True)
    readouts = replacement.readouts(torch.arange(len(replacement.latents)))
    terms = DirectAttribution(replacement).terms(readouts)
    sums = terms.by_source().sum(1) + terms.value_biases.sum((1, 2)) + terms.offsets
    assert torch.allclose(sums, replacement.values(readouts), atol=1e-10)
    # Nothing comes from a position that is not seen yet.
    later = torch.arange(len(PROMPT)) > replacement.latents.position[:, None]
    assert not terms.by_source()[later].any()
    assert float(terms.by_source().abs().max()) > 0.1


def test_everything_is_wholly_faithful_and_nothing_not_at_all() -> None:
    effects = feature_effects(linear_model(), linear_sites(), CLEAN, difference, PATCH, FIRST_ORDER)
    for baseline in (PATCH, None):
        every, none = faithfulness_curve(
            linear_model(), effects, CLEAN, difference, baseline, thresholds=[-1.0, 1e9]
        )
        assert (every.faithfulness, none.faithfulness) == pytest.approx((1.0, 0.0), abs=1e-9)
        assert (every.completeness, none.completeness) == pytest.approx((0.0, 1.0), abs=1e-9)


@ALL
def test_what_the_map_gives_without_changes_is_the_prompt_itself(name: str) -> None:
    map_ = LocalReplacement(model_of(name), transcoders(), PROMPT).map
    again = map_.at({})
    for hook, x in map_.reads.items():
        assert torch.equal(again[hook], x)


@ALL
def test_changing_a_latent_moves_what_is_read_by_its_edge(name: str) -> None:
    replacement = LocalReplacement(model_of(name), transcoders(), PROMPT)
    readouts = every_readout(replacement)
    columns = replacement.decompose(readouts).latents
    for place in (0, len(replacement.latents) // 2, len(replacement.latents) - 1):
        value = float(replacement.latents.value[place])
        doubled = direct_effects(replacement, {place: 2 * value}, readouts)
        assert torch.allclose(doubled, columns[:, place], atol=1e-10)
    both = direct_effects(replacement, {0: 0.0, 1: 0.0}, readouts)
    assert torch.allclose(both, -columns[:, 0] - columns[:, 1], atol=1e-10)


@ALL
def test_removing_an_error_or_a_token_moves_what_is_read_by_its_edge(name: str) -> None:
    replacement = LocalReplacement(model_of(name), transcoders(), PROMPT)
    readouts = every_readout(replacement)
    parts, map_ = replacement.decompose(readouts), replacement.map
    before = replacement.values(readouts)
    cut, at = replacement.cuts[1], 3
    for hook, vector, expected in (
        (cut, replacement.errors[cut], parts.errors[:, 1, at]),
        (replacement.embedding, map_.values[replacement.embedding], parts.tokens[:, at]),
    ):
        changed = map_.values[hook].clone()
        changed[at] -= vector[at]
        after = map_.at({hook: changed})
        moved = before - torch.cat([some.values(after) for some in readouts])
        assert torch.allclose(moved, expected, atol=1e-10)


@ALL
def test_the_sum_over_pairs_of_terms_is_the_attention_score(name: str) -> None:
    model = model_of(name)
    replacement = LocalReplacement(model, transcoders(), PROMPT)
    for head in (0, 3):
        score = attention_score(replacement, 2, head, query=5, key=2)
        assert float(score.pairs().sum()) == pytest.approx(score.value, abs=1e-10)
        assert float(score.by_query().sum()) == pytest.approx(score.value, abs=1e-10)
        assert float(score.by_key().sum()) == pytest.approx(score.value, abs=1e-10)
        term, other, weight = score.top_pairs(1)[0]
        assert {term.kind, other.kind} <= {"latent", "error", "token", "position", "bias"} | {
            "decoder_bias"
        }
        assert abs(weight) == pytest.approx(float(score.pairs().abs().max()))
        # A key sees nothing of what comes after it.
        late = [n for n, t in enumerate(score.terms) if (t.position or 0) > 2]
        assert not score.key[late].any()
        assert score.key.shape[1] == score.query.shape[1]


def test_scores_give_the_pattern_that_was_held() -> None:
    # GPT-2 has neither soft cap nor window: softmax of the scores is the pattern.
    replacement = LocalReplacement(model_of("gpt2"), transcoders(), PROMPT)
    scores = [attention_score(replacement, 1, 2, query=4, key=key).value for key in range(5)]
    pattern = replacement.map.held.patterns[1][0, 2, 4, :5]
    assert torch.allclose(torch.tensor(scores).double().softmax(0), pattern, atol=1e-6)


def test_numbering_latents_anew_numbers_the_nodes_anew_and_nothing_else() -> None:
    saes = [transcoder(0), transcoder(1)]
    order = torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(0))
    turned = [_permuted(sae, order) for sae in saes]
    first = trace(model_of("llama"), saes, PROMPT, CONFIG)
    second = trace(model_of("llama"), turned, PROMPT, CONFIG)
    new_place = {int(old): new for new, old in enumerate(order)}

    def renamed(name: str) -> str:
        layer, index, *rest = name.split("_")
        return "_".join([layer, str(new_place[int(index)]), *rest])

    def name_of(node: Node) -> str:
        return renamed(node.id) if node.kind == "latent" else node.id

    edges = {(name_of(a), name_of(b)): weight for a, b, weight in _edges(first)}
    again = {(a.id, b.id): weight for a, b, weight in _edges(second)}
    assert edges.keys() == again.keys()
    assert all(again[key] == pytest.approx(weight, abs=1e-10) for key, weight in edges.items())


def test_numbering_heads_anew_numbers_their_attributions_anew_and_nothing_else() -> None:
    plain: Any = model_of("gpt2")
    module = copy.deepcopy(plain.module)
    order = torch.tensor([2, 0, 3, 1])
    attention = module.transformer.h[1].attn
    with torch.no_grad():
        for whole in (attention.c_attn.weight, attention.c_attn.bias[None]):
            blocks = whole.unflatten(1, (3, 4, -1))
            whole.copy_(blocks[:, :, order].flatten(1))
        attention.c_proj.weight.copy_(
            attention.c_proj.weight.unflatten(0, (4, -1))[order].flatten(0, 1)
        )
    turned = load_model(module, name="turned", device="cpu")
    found: list[Tensor] = []
    for model in (plain, turned):
        replacement = LocalReplacement(model, transcoder(2), PROMPT, cut_heads=True)
        readouts = replacement.readouts(torch.arange(len(replacement.latents)))
        found.append(DirectAttribution(replacement).terms(readouts).heads)
    assert torch.allclose(found[1][:, 1], found[0][:, 1][:, order], atol=1e-10)
    assert torch.allclose(found[1][:, [0, 2]], found[0][:, [0, 2]], atol=1e-10)
    assert not torch.allclose(found[1][:, 1], found[0][:, 1], atol=1e-3)


def test_the_unit_of_a_latent_changes_only_what_flows_into_it() -> None:
    saes = [transcoder(n, None, seed=3) for n in range(3)]
    plain = trace(model_of("gpt2"), saes, PROMPT, CONFIG)
    node = max(
        (n for n in plain.nodes if n.kind == "latent" and n.layer == 1),
        key=lambda n: len(plain.out_of(n)),
    )
    index, c = node.index, 1.25
    assert index is not None
    with torch.no_grad():
        saes[1].W_enc[:, index] *= c
        saes[1].b_enc[index] *= c
        saes[1].W_dec[index] /= c
    scaled = trace(model_of("gpt2"), saes, PROMPT, CONFIG)
    assert [n.id for n in scaled.nodes] == [n.id for n in plain.nodes], "TopK chose others"
    for before, after in zip(_edges(plain), _edges(scaled), strict=True):
        into = before.target.kind == "latent" and before.target.layer == 1
        factor = c if into and before.target.index == index else 1.0
        assert after.weight == pytest.approx(before.weight * factor, abs=1e-10)
    assert torch.allclose(scaled.influence(), plain.influence(), atol=1e-10)
    assert scaled.replacement_score() == pytest.approx(plain.replacement_score())
    kept = [n.id for n in plain.prune().nodes]
    assert [n.id for n in scaled.prune().nodes] == kept


@ALL
def test_influence_that_leaves_the_targets_arrives_at_what_nothing_explains(name: str) -> None:
    graph = trace(model_of(name), transcoders(), PROMPT, CONFIG)
    terminal = torch.bincount(graph.target, minlength=len(graph)) == 0
    arrived = float(graph.influence()[terminal].sum())
    assert arrived == pytest.approx(float(graph.weights.sum()), abs=1e-9)


@ALL
def test_influence_is_its_closed_form(name: str) -> None:
    graph = trace(model_of(name), transcoders(), PROMPT, CONFIG)
    sizes = graph.adjacency().double().abs()
    shares = sizes / sizes.sum(1, keepdim=True).clamp_min(1e-300)
    eye = torch.eye(len(graph)).double()
    expected = graph.weights @ (torch.linalg.inv(eye - shares) - eye)
    assert torch.allclose(graph.influence(), expected, atol=1e-9)


@pytest.mark.parametrize("format", ["neuronpedia", "circuit-tracer"])
def test_a_graph_comes_back_from_its_file(format: str, tmp_path: Path) -> None:
    saes = [transcoder(n) for n in range(3)]
    graph = trace(model_of("llama"), saes, PROMPT, CONFIG).prune(0.9)
    graph.export(tmp_path / "g.json", format)
    back = read_viewer_json(tmp_path / "g.json")
    # Biases have no node there, and ids are the viewers': latents tell which is which.
    place = {(n.layer, n.index, n.position): at for at, n in enumerate(back.nodes)
             if n.kind == "latent"}  # fmt: skip
    mine = [at for at, n in enumerate(graph.nodes) if n.kind == "latent"]
    theirs = [place[graph.nodes[at].layer, graph.nodes[at].index, graph.nodes[at].position]
              for at in mine]  # fmt: skip
    assert len(mine) == len(place) > 10
    own, again = graph.adjacency()[mine][:, mine], back.adjacency()[theirs][:, theirs]
    assert torch.allclose(again.double(), own.double(), rtol=1e-6)
    assert bool(own.any())
    assert back.token_ids == graph.token_ids
    assert back.weights.sum() == pytest.approx(float(graph.weights.sum()))


def test_targets_are_linear_in_their_directions() -> None:
    model = model_of("neox")
    found = trace_terms(model, transcoders(), PROMPT, CONFIG, targets=[3, 7, (3, 7)])
    table = found.attribution.contributions.table()
    assert torch.allclose(table[0] - table[1], table[2], atol=1e-10)
    again = trace_terms(
        model,
        transcoders(),
        PROMPT,
        CONFIG,
        targets=[
            LogitTarget(
                label="twice", direction=2 * found.targets[0].direction, offset=0.0, weight=1.0
            )
        ],
    )
    assert torch.allclose(
        again.attribution.contributions.tokens[0],
        2 * found.attribution.contributions.tokens[0],
        atol=1e-10,
    )


def _edges(graph: AttributionGraph) -> list[Edge]:
    return [edge for node in graph.nodes for edge in graph.into(node)]


def _permuted(sae: SAE, order: torch.Tensor) -> SAE:
    """Latent `order[n]` becomes latent n."""
    other = transcoder(0)
    other.hook, other.hook_out = sae.hook, sae.hook_out
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.b_enc.copy_(sae.b_enc[order])
        other.W_dec.copy_(sae.W_dec[order])
        other.b_dec.copy_(sae.b_dec)
    return other
