"""EAP, EAP-IG and exact patching: equal where the model is linear, and sums that must close."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saelab.circuits.feature_effects import EffectsConfig
from saelab.errors import ConfigError
from saelab.models import load_model
from saelab.patching import (
    Edge,
    Experiment,
    edge_attribution,
    edge_effects,
    node_effects,
    path_effect,
)
from tests.circuits.circuit_cases import model_of
from tests.patching.patching_cases import (
    NAMES,
    experiment_of,
    linear_experiment,
    linear_model,
    random_pairs,
)

EAP = EffectsConfig(method="attribution")


@pytest.mark.parametrize(
    "config", [EAP, EffectsConfig(steps=1, rule="left"), EffectsConfig(steps=3)], ids=str
)
def test_in_a_linear_model_scores_are_exact_effects(config: EffectsConfig) -> None:
    one = linear_experiment()
    scores, exact = edge_attribution(one, config), edge_effects(one)
    assert float(exact.scores.abs().max()) > 0.05
    assert torch.allclose(scores.scores, exact.scores.double(), atol=1e-6)
    summed = scores.nodes()
    nodes = node_effects(one)
    assert torch.allclose(summed.values(), nodes.values().double(), atol=1e-6)


def test_in_a_linear_model_a_direct_path_is_its_edge() -> None:
    one = linear_experiment()
    scores = edge_attribution(one, EAP)
    for receivers in (["logits"], ["a1.v0", "a2.v1"], ["a2.v0"]):
        expected = sum(scores.of("a0.h1", name) for name in receivers)
        for through in (True, False):
            found = path_effect(one, "a0.h1", receivers, through_mlps=through)
            assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_edges_out_of_a_component_sum_to_its_slope_times_its_change(name: str) -> None:
    one = experiment_of(name)
    scores = edge_attribution(one, EAP).nodes()
    pairs = one.pairs
    clean, patch = one.writes(pairs.clean)[0], one.writes(pairs.patch)[0]
    for node, hook in (("m1", one.parts[1].mlp_out), ("a1.h2", one.parts[1].attention_out)):
        leaf = torch.zeros_like(clean[0]).requires_grad_()
        with torch.enable_grad(), one.model.editing({hook: lambda x, leaf=leaf: x + leaf}):
            value = pairs.measured(one.model.whole_pass(pairs.clean)[0][:, -1]).mean()
            (slope,) = torch.autograd.grad(value, [leaf])
        at = one.graph.senders.index(node)
        expected = float((slope * (patch[at] - clean[at])).sum())
        assert abs(expected) > 1e-3
        assert scores.of(node) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_integrated_edges_out_of_the_embedding_sum_to_the_whole_difference(name: str) -> None:
    one = experiment_of(name)
    whole = one.patched - one.clean
    gaps = []
    for steps in (1, 12):
        scores = edge_attribution(one, EffectsConfig(steps=steps))
        gaps.append(abs(float(scores.scores[:, 0].sum()) - whole) / abs(whole))
    assert gaps[1] < 0.05
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_small_change_is_predicted_to_first_order(name: str) -> None:
    # The patch differs from the clean prompt by an embedding moved a little, so slopes are enough.
    one = experiment_of(name)
    (batch, stand_in), *_ = one._batches
    clean = one.writes(batch.clean)[0]
    near = Experiment(one.model, batch)
    near._batches = [(batch, clean + 1e-4 * (stand_in - clean))]
    scores = edge_attribution(near, EAP)
    largest = scores.ranked()[:12]
    exact = edge_effects(near, largest)
    for edge in largest:
        assert exact.of(*edge) == pytest.approx(scores.of(*edge), rel=0.05)


def test_the_first_order_misses_what_integration_finds_on_the_way() -> None:
    # A metric that is flat at the clean run: only its middle has a slope.
    pairs = random_pairs(1)
    single = Experiment(linear_model(), pairs)
    clean, patched = single.clean, single.patched

    def bump(logits: Tensor, answers: Tensor, others: Tensor) -> Tensor:
        rows = torch.arange(len(logits))
        share = (logits[rows, answers] - logits[rows, others] - clean) / (patched - clean)
        return share.clamp(0.05, 0.95)

    flat = Experiment(linear_model(), replace(pairs, measure=bump))
    assert not edge_attribution(flat, EAP).scores.any()
    found = edge_attribution(flat, EffectsConfig(steps=9))
    assert float(found.scores[:, 0].sum()) == pytest.approx(1.0, abs=0.15)


def test_heads_in_another_order_are_scored_in_that_order() -> None:
    original = model_of("gpt2")
    module = copy.deepcopy(original.module)  # type: ignore[attr-defined]
    order = [2, 0, 3, 1]
    block = module.transformer.h[1].attn
    with torch.no_grad():
        for start in (0, 32, 64):
            for tensor in (block.c_attn.weight.T, block.c_attn.bias):
                part = tensor[start : start + 32]
                part.copy_(part.unflatten(0, (4, 8))[order].flatten(0, 1).clone())
        rows = block.c_proj.weight
        rows.copy_(rows.unflatten(0, (4, 8))[order].flatten(0, 1).clone())
    turned = Experiment(load_model(module, name="turned", device="cpu"), random_pairs())
    plain = experiment_of("gpt2")
    a, b = edge_attribution(plain, EAP), edge_attribution(turned, EAP)
    for new, old in enumerate(order):
        assert b.of(f"a1.h{new}", "logits") == pytest.approx(a.of(f"a1.h{old}", "logits"))
        for channel in "qkv":
            assert b.of("m0", f"a1.{channel}{new}") == pytest.approx(
                a.of("m0", f"a1.{channel}{old}"), abs=1e-6
            )


def test_mlps_on_the_way_carry_a_path_too() -> None:
    one = experiment_of("llama")
    straight = path_effect(one, "a0.h1", ["logits"], through_mlps=False)
    through = path_effect(one, "a0.h1", ["logits"])
    assert straight == pytest.approx(
        edge_effects(one, [Edge("a0.h1", "logits")]).of("a0.h1", "logits")
    )
    assert abs(through - straight) > 1e-4
    # With heads held and MLPs free, what reaches the logits is the model with those heads fixed.
    clean = one.model.activations(one.pairs.clean, [p.attention_out for p in one.parts])
    gone = one.graph.node_mask(["a0.h1"])
    first = one.parts[0].attention_out
    writes = [one.writes(tokens)[0][gone][0] for tokens in (one.pairs.clean, one.pairs.patch)]
    held = {p.attention_out: clean[p.attention_out] for p in one.parts}
    held[first] = held[first] + writes[1] - writes[0]
    with one.model.editing({hook: lambda _, x=x: x for hook, x in held.items()}):
        expected = one.pairs.measured(one.model.logits(one.pairs.clean)[:, -1])
    assert through == pytest.approx(float(expected.mean()) - one.clean, abs=1e-6)


def test_the_direction_of_patching_can_be_turned_round() -> None:
    one = experiment_of("neox")
    back = Experiment(one.model, one.pairs.swapped())
    assert back.clean == pytest.approx(one.patched)
    everything = back.graph.node_mask(back.graph.senders)
    assert back.without(nodes=everything) == pytest.approx(one.clean, abs=1e-6)


def test_what_cannot_be_asked_is_refused() -> None:
    one = linear_experiment()
    with pytest.raises(ConfigError, match="no edge"):
        path_effect(one, "a2.h0", ["a1.q0"])
    with pytest.raises(ConfigError, match="No receiver"):
        path_effect(one, "a0.h0", [])
    with pytest.raises(ConfigError, match="there are"):
        edge_attribution(one, EAP).top(10_000)
