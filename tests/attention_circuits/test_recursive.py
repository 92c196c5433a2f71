"""Recursive attribution: graphs that close, and that find the compiled circuit."""

import pytest
import torch

from saelab.attention_circuits import RecursiveConfig, recursive_graph
from saelab.circuits import LocalReplacement, trace_terms
from saelab.circuits.targets import resolve
from saelab.errors import ConfigError
from saelab.graphs import AttributionGraph
from tests.attention_circuits.planted_induction import oracle_of_output, planted_induction, repeats
from tests.circuits.circuit_cases import (
    PROMPT,
    autoencoder,
    model_of,
    transcoder,
)


def graph_of(name: str, config: RecursiveConfig | None = None) -> AttributionGraph:
    model = model_of(name)
    width = model.hook_point("blocks.1.attn.hook_z").width
    saes = [autoencoder("blocks.1.attn.hook_z", width or 0), transcoder(0), transcoder(2)]
    replacement = LocalReplacement(model, saes, PROMPT, cut_heads=True)
    targets = resolve(model, replacement.map.logits, [3, (5, 7)])
    return recursive_graph(replacement, targets, config)


@pytest.mark.parametrize("name", ["neox", "gemma2"])
def test_a_recursive_graph_closes(name: str) -> None:
    graph = graph_of(name)
    assert graph.closes(1e-9)
    known = ~graph.totals.isnan()
    assert int(known.sum()) == 100
    kinds = {node.kind for node in graph.nodes}
    assert {"logit", "target", "head", "latent", "token", "error", "bias"} <= kinds
    arrived = graph.influence()[torch.bincount(graph.target, minlength=len(graph)) == 0]
    assert float(arrived.sum()) == pytest.approx(float(graph.weights.sum()), abs=1e-9)


def test_targets_have_the_value_that_trace_gives_them() -> None:
    found = {n.id: n.value for n in graph_of("llama").nodes if n.kind in ("logit", "target")}
    again = trace_terms(model_of("llama"), transcoder(0), PROMPT, targets=[3, (5, 7)])
    assert list(found.values()) == pytest.approx(again.attribution.totals[:2].tolist(), abs=1e-6)


def test_a_head_node_is_worth_its_one_edge() -> None:
    graph = graph_of("gpt2")
    heads = [n for n in graph.nodes if n.kind == "head"]
    assert len(heads) > 10
    for node in heads:
        (edge,) = graph.out_of(node)
        total = float(graph.totals[graph.place(node)])
        assert edge.weight == pytest.approx(total, abs=1e-12)
        assert node.id.endswith(f"_to_{edge.target.id}")


def test_a_finer_share_changes_no_large_edge() -> None:
    coarse = graph_of("neox", RecursiveConfig(max_readouts=6, min_share=0.02))
    fine = graph_of("neox", RecursiveConfig(max_readouts=6, min_share=0.0, batch_size=1))
    assert len(fine) > len(coarse)
    assert fine.closes(1e-9) and coarse.closes(1e-9)
    weights = {(e.source.id, e.target.id): e.weight for n in fine.nodes for e in fine.into(n)}
    target = next(n for n in coarse.nodes if n.kind == "logit")
    for edge in coarse.into(target):
        if not edge.source.id.startswith("rest_"):
            same = weights[edge.source.id, target.id]
            assert edge.weight == pytest.approx(same, abs=1e-12)


def test_the_compiled_circuit_is_traced_back_to_the_token() -> None:
    row = repeats(1)[0][0]
    model = planted_induction()
    replacement = LocalReplacement(model, oracle_of_output(), row, cut_heads=True)
    earlier, last = int((row[:-1] == row[-1]).nonzero()[0]), len(row) - 1
    answer = int(row[earlier + 1])
    config = RecursiveConfig(max_readouts=3, min_share=0.01)
    graph = recursive_graph(replacement, resolve(model, replacement.map.logits, [answer]), config)
    assert graph.closes(1e-9)

    def largest(name: str) -> str:
        return max(graph.into(name), key=lambda edge: edge.weight).source.id

    latent = largest(f"logit_{answer}")
    assert latent == f"1_z_{answer}_{last}"
    head = largest(latent)
    assert head == f"1_head_0_{earlier + 1}_to_{latent}"
    assert largest(head) == f"E_{answer}_{earlier + 1}"


def test_latents_can_be_targets_and_nothing_cannot() -> None:
    replacement = LocalReplacement(model_of("llama"), transcoder(2), PROMPT, cut_heads=True)
    graph = recursive_graph(replacement, [0], RecursiveConfig(max_readouts=5))
    expected = float(replacement.values(replacement.readouts(torch.tensor([0])))[0])
    assert graph.node("target_0").value == pytest.approx(expected)
    assert graph.closes(1e-9)
    with pytest.raises(ConfigError, match="No target was named"):
        recursive_graph(replacement, [])
    with pytest.raises(ConfigError, match="min_share=1"):
        RecursiveConfig(min_share=1.0)
