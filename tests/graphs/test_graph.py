"""AttributionGraph: influence in closed form, sums that close, pruning, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from saelab.errors import ConfigError, DataError
from saelab.graphs import AttributionGraph, Node, atlas_labels, scores
from tests.graphs.by_hand import EDGES, INFLUENCE, NODES, TOTALS, graph_of, hand_graph, random_graph


def normalized(graph: AttributionGraph) -> torch.Tensor:
    """A, dense, written out anew."""
    size = graph.adjacency().double().abs()
    sums = size.sum(1, keepdim=True)
    return torch.where(sums > 0, size / sums, 0.0)


def test_influence_of_the_hand_graph_is_what_the_hand_says() -> None:
    graph = hand_graph()
    expected = torch.tensor([INFLUENCE[node.id] for node in graph.nodes], dtype=torch.float64)
    torch.testing.assert_close(graph.influence(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_influence_is_the_closed_form(seed: int) -> None:
    graph = random_graph(seed)
    eye = torch.eye(len(graph), dtype=torch.float64)
    expected = graph.weights @ (torch.linalg.inv(eye - normalized(graph)) - eye)
    torch.testing.assert_close(graph.influence(), expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(graph.direct(), graph.weights @ normalized(graph))


@pytest.mark.parametrize("seed", range(5))
def test_influence_is_conserved_from_read_outs_to_sources(seed: int) -> None:
    graph = random_graph(seed)
    terminal = normalized(graph).sum(1) == 0
    assert bool(terminal[graph.of_kind("token", "error")].all())
    carried = graph.influence()[terminal].sum() + graph.weights[terminal].sum()
    assert float(carried) == pytest.approx(float(graph.weights.sum()), abs=1e-14)


@pytest.mark.parametrize("factor", [1e-14, 0.5, 1e9])
def test_rescaling_a_latent_changes_neither_influence_nor_pruning_nor_scores(factor: float) -> None:
    graph = random_graph(3)
    row = graph.place("f13")
    adjacency, totals = graph.adjacency(), graph.totals.clone()
    adjacency[row] *= factor
    totals[row] *= factor
    scaled = AttributionGraph.from_adjacency(
        graph.nodes, adjacency, totals, graph.weights, graph.tokens, graph.token_ids
    )
    torch.testing.assert_close(scaled.influence(), graph.influence(), atol=1e-14, rtol=1e-11)
    pruned, other = graph.prune(0.6, 0.9), scaled.prune(0.6, 0.9)
    assert pruned.nodes == other.nodes
    assert pruned.source.tolist() == other.source.tolist()
    assert scores(scaled).replacement == pytest.approx(scores(graph).replacement, rel=1e-11)
    assert scores(scaled).completeness == pytest.approx(scores(graph).completeness, rel=1e-11)


def test_permuting_nodes_permutes_everything() -> None:
    graph = random_graph(1)
    order = torch.randperm(len(graph), generator=torch.Generator().manual_seed(0))
    shuffled = AttributionGraph.from_adjacency(
        [graph.nodes[place] for place in order],
        graph.adjacency()[order][:, order],
        graph.totals[order],
        graph.weights[order],
        graph.tokens,
        graph.token_ids,
    )
    torch.testing.assert_close(shuffled.influence(), graph.influence()[order])
    torch.testing.assert_close(shuffled.cumulative(), graph.cumulative()[order])
    assert {n.id for n in shuffled.prune(0.5).nodes} == {n.id for n in graph.prune(0.5).nodes}
    assert shuffled.completeness_score() == pytest.approx(graph.completeness_score(), rel=1e-12)


def test_sums_close_and_a_changed_edge_opens_them() -> None:
    graph = hand_graph()
    assert graph.closes(1e-6)
    residuals = dict(zip((n.id for n in graph.nodes), graph.residuals().tolist(), strict=True))
    assert math.isnan(residuals["t0"])
    assert residuals["l1a"] == 0.0
    wrong = graph_of(NODES, {**EDGES, ("l1a", "p"): 5.5}, TOTALS, {"p": 0.6})
    assert not wrong.closes(0.01)
    assert float(wrong.residuals()[wrong.place("p")]) == pytest.approx(-0.5)
    forgotten = graph_of(NODES, {k: v for k, v in EDGES.items() if k[1] != "q"}, TOTALS, {"p": 1.0})
    assert not forgotten.closes(0.5), "a total that no edge explains is open"


def test_edges_of_a_node_come_largest_first_with_their_sign() -> None:
    graph = hand_graph()
    assert [(e.source.id, e.weight) for e in graph.into("p")] == [
        ("l1a", 5.0),
        ("e1", -2.0),
        ("l1b", 2.0),
        ("bias", 1.0),
    ]
    assert [(e.target.id, e.weight) for e in graph.out_of(graph.node("l1b"))] == [
        ("q", -3.0),
        ("p", 2.0),
    ]
    assert graph.adjacency()[graph.place("q"), graph.place("l1b")] == -3.0


def test_scores_of_the_hand_graph_are_what_the_hand_says() -> None:
    """The prompt is tokens and the position embedding; the bias is on neither side."""
    graph = hand_graph()
    prompt, errors = 0.1125 + 0.3075 + 0.0875 + 0.0375, 0.075 + 0.12
    assert graph.replacement_score() == pytest.approx(prompt / (prompt + errors))
    through = 0.8 + sum(INFLUENCE.values())
    missed = 0.6 * 0.2 + 0.3 * 0.25  # p reads a fifth of errors, l1a a quarter
    assert graph.completeness_score() == pytest.approx(1 - missed / through)


def test_floors_of_the_hand_graph_take_every_latent_as_error() -> None:
    """Only token2 -> q (0.05) is from the prompt; biases 0.06, all the rest of 0.8 is missed."""
    found = scores(hand_graph())
    missed = 0.8 - 0.05 - 0.06
    assert found.replacement_floor == pytest.approx(0.05 / (0.05 + missed))
    assert found.completeness_floor == pytest.approx(1 - missed / 1.6)
    assert found.replacement > found.replacement_floor
    assert found.completeness > found.completeness_floor


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_completeness_without_latents_is_half_way_from_replacement_to_one(share: float) -> None:
    nodes = (NODES[0], NODES[5], NODES[11])
    edges = {("t0", "p"): share, ("e0", "p"): share - 1}
    graph = graph_of(nodes, edges, {"p": 2 * share - 1}, {"p": 0.7})
    found = scores(graph)
    assert found.replacement == pytest.approx(share)
    assert found.completeness == pytest.approx((1 + share) / 2)
    assert found.replacement_floor == pytest.approx(share)
    assert found.completeness_floor == pytest.approx((1 + share) / 2)


def test_a_graph_without_errors_scores_one() -> None:
    edges = {ends: weight for ends, weight in EDGES.items() if ends[0] not in ("e0", "e1")}
    graph = graph_of(NODES, edges, {}, {"p": 0.6, "q": 0.2})
    assert graph.replacement_score() == 1.0
    assert graph.completeness_score() == 1.0


def test_edges_into_errors_change_no_score() -> None:
    graph = graph_of(NODES, {**EDGES, ("t0", "e0"): 3.0}, TOTALS, {"p": 0.6, "q": 0.2})
    assert scores(graph) == scores(hand_graph())


def test_keeping_everything_is_the_identity() -> None:
    for graph in (hand_graph(), random_graph(2)):
        kept = graph.prune(1.0, 1.0)
        assert kept.pruning is not None
        assert (kept.pruning.node_share, kept.pruning.edge_share) == (1.0, 1.0)
        assert kept.pruning.dropped == ()
        assert not bool(kept.dropped.any()) if kept.dropped is not None else False
        assert replace(kept, pruning=None, dropped=None) == graph


def test_pruning_the_hand_graph_keeps_what_the_hand_keeps() -> None:
    """Sorted: t1 .3075, l1a .3, l1b .27, l0b .27, l0a .15, e1 .12, t0 .1125 ... of 1.79.

    1.2975 at l0a is 72.5 %, 1.4175 at e1 is 79.2 %, so t0 (85.5 %) is the last that is needed.
    e0, pos1 and bias go; t2 stays because it is a token. Edges are then scored anew:
    l1a reads l0a 4/5 and t2 1/5; p reads l1a 5/9, l1b 2/9, e1 2/9.
    """
    pruned = hand_graph().prune(0.8, 1.0)
    assert {node.id for node in pruned.nodes} == {
        *("t0", "t1", "t2", "l0a", "l0b", "l1a", "l1b", "e1", "p", "q")
    }
    assert pruned.n_edges == 11
    record = pruned.pruning
    assert record is not None
    assert record.dropped == (("bias", 1), ("error", 1), ("position", 1))
    assert record.node_share == pytest.approx(1 - (0.075 + 0.0375 + 0.06) / sum(INFLUENCE.values()))
    scored = dict(
        zip(
            (
                (pruned.nodes[s].id, pruned.nodes[t].id)
                for s, t in zip(pruned.source.tolist(), pruned.target.tolist(), strict=True)
            ),
            pruned.edge_scores().tolist(),
            strict=True,
        )
    )
    l1a = 0.6 * 5 / 9
    assert scored["l1a", "p"] == pytest.approx(l1a)
    assert scored["l0a", "l1a"] == pytest.approx(l1a * 4 / 5)
    assert scored["l0b", "l1b"] == pytest.approx(0.6 * 2 / 9 + 0.2 * 3 / 4)


def test_pruning_is_the_specification_written_out_densely() -> None:
    for seed in range(6):
        graph = random_graph(seed, n_latents=40)
        pruned = graph.prune(0.7, 0.8)
        nodes, edges = dense_pruning(graph, 0.7, 0.8)
        assert [n.id for n in pruned.nodes] == nodes
        places = {node.id: place for place, node in enumerate(graph.nodes)}
        found = {
            (places[pruned.nodes[t].id], places[pruned.nodes[s].id])
            for s, t in zip(pruned.source.tolist(), pruned.target.tolist(), strict=True)
        }
        assert found == edges
        assert 0 < len(found) < graph.n_edges


def dense_pruning(
    graph: AttributionGraph, node_threshold: float, edge_threshold: float
) -> tuple[list[str], set[tuple[int, int]]]:
    """Matrices and loops, from the description of the method and not from the code."""

    def influence_of(matrix: torch.Tensor) -> torch.Tensor:
        size = matrix.abs()
        a = size / size.sum(1, keepdim=True).clamp(min=1e-10)
        return graph.weights @ (torch.linalg.inv(torch.eye(len(a)).double() - a)) - graph.weights

    def needed(values: torch.Tensor, threshold: float) -> torch.Tensor:
        ordered, total, running = sorted(values.tolist(), reverse=True), float(values.sum()), 0.0
        for value in ordered:
            running += value
            if running >= threshold * total:
                return values >= value
        return values >= 0

    adjacency = graph.adjacency().double()
    fixed = graph.of_kind("token", "logit")
    keep = needed(influence_of(adjacency), node_threshold) | fixed
    pruned = adjacency * keep[:, None] * keep[None, :]
    size = pruned.abs()
    a = size / size.sum(1, keepdim=True).clamp(min=1e-10)
    score = a * (influence_of(pruned) + graph.weights)[:, None]
    pruned = pruned * needed(score.flatten(), edge_threshold).reshape(score.shape)
    while True:
        has_out, has_in = pruned.abs().sum(0) > 0, pruned.abs().sum(1) > 0
        errors = graph.of_kind("error")
        left = keep & (fixed | (errors & has_out) | (graph.of_kind("latent") & has_out & has_in))
        if bool((left == keep).all()):
            break
        keep = left
        pruned = pruned * keep[:, None] * keep[None, :]
    names = [n.id for n, kept in zip(graph.nodes, keep.tolist(), strict=True) if kept]
    return names, {(int(t), int(s)) for t, s in pruned.nonzero().tolist()}


def test_a_pruned_graph_still_closes_and_remembers_the_whole() -> None:
    graph = random_graph(4)
    pruned = graph.prune(0.6, 0.9)
    assert len(pruned) < len(graph)
    assert pruned.closes(1e-9)
    assert scores(pruned) == scores(graph)
    of_whole = dict(zip((n.id for n in graph.nodes), graph.cumulative().tolist(), strict=True))
    assert pruned.cumulative().tolist() == [of_whole[node.id] for node in pruned.nodes]
    with pytest.raises(ConfigError, match="pruned before"):
        pruned.prune(0.5)
    part = pruned.subgraph([node.id for node in pruned.nodes if node.kind != "error"])
    assert part.closes(1e-9)
    assert scores(part) == scores(graph)
    assert len(part.cumulative()) == len(part)


def test_cumulative_is_small_for_what_matters_and_equal_for_ties() -> None:
    graph = hand_graph()
    found = dict(zip((n.id for n in graph.nodes), graph.cumulative().tolist(), strict=True))
    whole = sum(INFLUENCE.values())
    assert found["t1"] == pytest.approx(0.3075 / whole)
    assert found["l1b"] == pytest.approx(found["l0b"]) == pytest.approx(1.1475 / whole)
    assert found["p"] == 1.0


@pytest.mark.parametrize("thresholds", [(0.0, 0.9), (0.8, 1.1), (-1.0, 0.5), (math.nan, 0.5)])
def test_thresholds_out_of_range_are_refused(thresholds: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        hand_graph().prune(*thresholds)


def test_labels_come_from_a_mapping_or_by_asking() -> None:
    graph = hand_graph()
    assert graph.with_labels({"l0a": "capitals"}).node("l0a").label == "capitals"
    asked = graph.with_labels(lambda node: node.name if node.kind == "latent" else None)
    assert asked.node("l1b").label == "latent 3 of layer 1 at 2"
    assert asked.node("p").label == " Paris"
    assert graph.node("l0a").label == "", "the first graph is as it was"
    with pytest.raises(DataError, match="'nobody'"):
        graph.with_labels({"nobody": "x"})


def test_labels_come_from_an_atlas_by_hook_point() -> None:
    class Names:
        def labels(self, latents: Sequence[int] | None = None) -> dict[int, str]:
            assert latents is None
            return {7: "countries", 9: ""}

    labeled = hand_graph().with_labels(atlas_labels({"blocks.0.mlp": Names()}))
    assert [labeled.node(one).label for one in ("l0a", "l0b", "l1a")] == ["countries", "", ""]


def test_subgraph_and_pins_keep_only_what_is_there() -> None:
    graph = hand_graph(groups={"first": ("l0a", "l0b"), "second": ("l1a",)}, pinned=("l1a", "q"))
    part = graph.subgraph(["l0a", "t0", "p", "q"])
    assert part.groups == {"first": ("l0a",)}
    assert part.pinned == ("q",)
    assert [(e.source.id, e.weight) for e in part.into("l0a")] == [("t0", 3.0)]
    assert part.dropped is not None
    assert float(part.dropped[part.place("l0a")]) == -1.0
    assert graph.pin(["t0"]).pinned == ("t0",)
    with pytest.raises(DataError, match="No node 'x'"):
        graph.subgraph(["x"])


def test_equality_is_of_everything() -> None:
    graph = hand_graph()
    assert graph == hand_graph()
    assert graph != graph.pin(["t0"])
    assert graph != graph.with_labels({"l0a": "x"})
    assert graph != hand_graph(metadata={"model": "another"})
    assert graph != graph_of(
        NODES, {**EDGES, ("t0", "l0a"): 3.0000002}, TOTALS, {"p": 0.6, "q": 0.2}
    )
    assert graph != "a graph"


def test_a_graph_cannot_be_changed_through_what_it_was_made_of() -> None:
    weight = torch.tensor([1.0])
    graph = AttributionGraph(
        nodes=(NODES[0], NODES[11]),
        source=torch.tensor([0]),
        target=torch.tensor([1]),
        weight=weight,
        totals=torch.tensor([math.nan, 1.0]),
        weights=torch.tensor([0.0, 1.0]),
        tokens=("a", "b", "c"),
        token_ids=(1, 2, 3),
    )
    weight += 1
    assert graph.weight.tolist() == [1.0]
    with pytest.raises(AttributeError):
        graph.weight = weight  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": {**EDGES, ("p", "l0a"): 1.0}}, "cycle"),
        ({"edges": {**EDGES, ("l0a", "l0a"): 1.0}}, "cycle"),
        ({"edges": {**EDGES, ("l0a", "t0"): 1.0}}, "token node, which nothing explains"),
        ({"edges": {**EDGES, ("t0", "q"): math.nan}}, "must be finite"),
        ({"edges": {**EDGES, ("t0", "q"): math.inf}}, "must be finite"),
        ({"totals": {"p": math.inf}}, "infinite"),
        ({"weights": {"p": -0.1}}, "not negative"),
        ({"weights": {"p": math.nan}}, "finite"),
        ({"weights": {"l0a": 0.1}}, "only logits and targets"),
        ({"nodes": (*NODES, NODES[0])}, "used twice, 't0' first"),
        ({"nodes": (*NODES, Node(id="far", kind="error", layer=0, position=3))}, "3 tokens"),
        ({"tokens": ("a", "b", "c"), "token_ids": (1, 2)}, "3 tokens have 2 ids"),
        ({"metadata": {"x": math.nan}}, "plain JSON"),
        ({"metadata": {"x": {1, 2}}}, "plain JSON"),
        ({"groups": {"g": ("nobody",)}}, "no node has that id"),
        ({"groups": {"g": ("l0a",), "h": ("l0a",)}}, "in groups 'g' and 'h'"),
        ({"groups": {"g": ()}}, "empty"),
        ({"pinned": ("nobody",)}, "'nobody' is pinned"),
    ],
)
def test_what_is_no_graph_is_refused(change: dict, message: str) -> None:
    parts = {"nodes": NODES, "edges": EDGES, "totals": TOTALS, "weights": {"p": 0.6}, **change}
    with pytest.raises(DataError, match=message):
        graph_of(**parts)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([0, 13], [11, 11], "ends at node"),
        ([0, -1], [11, 11], "ends at node"),
        ([0, 0], [11, 11], "given twice, from 't0' to 'p'"),
    ],
)
def test_edges_that_dangle_or_repeat_are_refused(
    source: list[int], target: list[int], message: str
) -> None:
    graph = hand_graph()
    with pytest.raises(DataError, match=message):
        AttributionGraph(
            nodes=graph.nodes,
            source=torch.tensor(source),
            target=torch.tensor(target),
            weight=torch.ones(len(target)),
            totals=graph.totals,
            weights=graph.weights,
            tokens=graph.tokens,
            token_ids=graph.token_ids,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"layer": -1},
        {"position": -2},
        {"index": -1},
        {"value": math.nan},
        {"probability": 1.5},
        {"probability": math.nan},
    ],
)
def test_what_is_no_node_is_refused(wrong: dict) -> None:
    with pytest.raises(DataError):
        Node(**{"id": "x", "kind": "latent", **wrong})


def test_a_graph_without_weights_has_no_scores() -> None:
    graph = graph_of(NODES, EDGES, TOTALS, {})
    assert not bool(graph.influence().any())
    with pytest.raises(DataError, match="has no scores"):
        graph.replacement_score()
    assert graph.prune(0.8).pruning is not None


def test_a_chain_of_a_thousand_nodes_carries_all_influence_to_its_end() -> None:
    names = [f"f{i}" for i in range(1000)]
    nodes = (NODES[0], *(Node(id=name, kind="latent", layer=0) for name in names), NODES[11])
    ends = ["t0", *names, "p"]
    edges = dict.fromkeys(pairwise(ends), -1.0)
    graph = graph_of(nodes, edges, {}, {"p": 0.5})
    assert graph.influence().tolist() == [0.5] * 1001 + [0.0]
