"""What must hold across methods, whatever the model: sums, symmetries, identities."""

import pytest
import torch

from saelab.circuits import (
    LocalReplacement,
    LogitTarget,
    TraceConfig,
    attention_score,
    direct_effects,
    trace,
    trace_terms,
)
from saelab.graphs import AttributionGraph, Edge, Node
from saelab.sae import SAE
from tests.circuits.circuit_cases import (
    MAKERS,
    N_LATENTS,
    PROMPT,
    every_readout,
    model_of,
    transcoder,
    transcoders,
)

ALL = pytest.mark.parametrize("name", MAKERS)
CONFIG = TraceConfig(max_logits=3)


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
