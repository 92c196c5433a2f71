"""What a graph predicts: numbers by hand, and agreement with the tensors it was made from."""

import pytest
import torch

from saelab.circuits import TraceConfig, path_effects, trace_terms
from saelab.errors import ConfigError, DataError
from saelab.graphs import predicted_change, pushes
from tests.circuits.circuit_cases import PROMPT, model_of, transcoders
from tests.graphs.by_hand import hand_graph, random_graph


def test_pushes_follow_every_path_by_hand() -> None:
    """One more unit of l1a adds 5/2.5 to p; of l1b 2/1; of l0a 4*2/1.5; of l0b -5*2/0.5."""
    graph = hand_graph()
    found = dict(zip((n.id for n in graph.nodes), pushes(graph, "p").tolist(), strict=True))
    assert found["l1a"] == pytest.approx(5)
    assert found["l0a"] == pytest.approx(4 * 2)
    assert found["l0b"] == pytest.approx(-5 * 2)
    assert found["e0"] == pytest.approx(-2 * 2)
    assert found["t0"] == pytest.approx(3 * 8 / 1.5)
    assert found["t1"] == pytest.approx(-1 * 8 / 1.5 + 2 * -10 / 0.5)
    assert found["p"] == found["q"] == 0


def test_a_latent_that_is_switched_off_takes_its_push_along() -> None:
    graph = random_graph(4)
    for read_out in ("y0", "y2"):
        push = pushes(graph, read_out)
        for name in ("f0", "f7", "f19"):
            found = predicted_change(graph, {name: 0.0})
            at = [one.id for one in found.read_outs].index(read_out)
            assert float(found.paths[at]) == pytest.approx(-float(push[graph.place(name)]))


def test_changes_are_linear_and_a_changed_latent_keeps_its_value() -> None:
    """l0b to 0 alone: q loses -5 * -3 = 15. With l1b held at 1, l0b cannot reach q any more."""
    graph = hand_graph()
    alone = predicted_change(graph, {"l0b": 0.0})
    assert [one.id for one in alone.read_outs] == ["p", "q"]
    assert alone.direct.tolist() == [0, 0]
    assert alone.paths.tolist() == pytest.approx([10, -15])
    assert predicted_change(graph, {"l0b": 1.0}).paths.tolist() == pytest.approx([-10, 15])
    held = predicted_change(graph, {"l0b": 0.0, "l1b": 1.0})
    assert held.paths.tolist() == [0, 0]


def test_the_graph_predicts_what_the_tensors_predict() -> None:
    traced = trace_terms(model_of("llama"), transcoders(), PROMPT, TraceConfig(max_latents=12))
    graph, found = traced.graph(), traced.attribution
    latents = [node for node in graph.nodes if node.kind == "latent"]
    paths = path_effects(traced)
    for at in (0, 5, 11):
        node, value = latents[at], float(traced.replacement.latents.value[found.traced[at]])
        predicted = predicted_change(graph, {node.id: 0.0})
        direct = -found.contributions.latents[: len(traced.targets), found.traced[at]]
        assert torch.allclose(predicted.direct, direct.double(), atol=1e-9)
        assert torch.allclose(predicted.paths, -value * paths[at].double(), atol=1e-9)


def test_bad_questions_are_refused() -> None:
    graph = hand_graph()
    with pytest.raises(ConfigError, match="at least one latent"):
        predicted_change(graph, {})
    with pytest.raises(ConfigError, match="'t0' is a token"):
        predicted_change(graph, {"t0": 1.0})
    with pytest.raises(DataError, match="No node 'nowhere'"):
        predicted_change(graph, {"nowhere": 1.0})
    with pytest.raises(DataError, match="on a logit or a target"):
        pushes(graph, "l0a")
