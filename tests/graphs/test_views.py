"""Paths, groups, the figure and the page: numbers by hand, and hostile text escaped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab.errors import ConfigError
from saelab.graphs import (
    AttributionGraph,
    Node,
    graph_figure,
    group_view,
    save_page,
    strongest_paths,
)
from saelab.graphs.page import graph_page
from tests.graphs.by_hand import EDGES, NODES, TOTALS, graph_of, hand_graph, random_graph


def all_paths(graph: AttributionGraph) -> list[tuple[float, tuple[str, ...], int]]:
    """Every path, by walking back from the read-outs."""
    a = graph.adjacency().double()
    share = a.abs() / a.abs().sum(1, keepdim=True).clamp_min(1e-300)
    found = []

    def walk(at: int, held: float, names: tuple[str, ...], sign: int) -> None:
        sources = a[at].nonzero().flatten().tolist()
        if not sources:
            found.append((held, names, sign))
        for source in sources:
            turned = sign if a[at, source] > 0 else -sign
            walk(source, held * float(share[at, source]), (graph.nodes[source].id, *names), turned)

    for place, weight in enumerate(graph.weights.tolist()):
        if weight:
            walk(place, weight, (graph.nodes[place].id,), 1)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("make", [hand_graph, lambda: random_graph(5, n_latents=12)])
def test_the_strongest_paths_are_the_first_of_all_paths(
    make: Callable[[], AttributionGraph],
) -> None:
    graph = make()
    expected = all_paths(graph)
    found = strongest_paths(graph, 30)
    assert [path.share for path in found] == pytest.approx([one[0] for one in expected[:30]])
    assert len(expected) < 11 or len(found) == 30
    everything = strongest_paths(graph, 10**6)
    assert len(everything) == len(expected)
    assert sum(path.share for path in everything) == pytest.approx(float(graph.weights.sum()))
    signs = {names: sign for _, names, sign in expected}
    for path in found:
        assert path.sign == signs[tuple(node.id for node in path.nodes)]
        assert len(path.weights) == len(path.nodes) - 1


def test_paths_of_nothing_are_none() -> None:
    assert strongest_paths(graph_of(NODES, EDGES, TOTALS, {}), 5) == ()
    assert strongest_paths(hand_graph(), 0) == ()
    alone = graph_of((NODES[11],), {}, {}, {"p": 1.0})
    assert strongest_paths(alone, 5) == ()


def test_edges_between_groups_are_signed_shares_of_what_members_read_from_outside() -> None:
    """B reads l0a 4, l0b -5, e0 -2, pos1 1, t2 1: 13; A gives 4 - 5. p reads 10, B gives 7."""
    graph = hand_graph(groups={"A": ("l0a", "l0b"), "B": ("l1a", "l1b")})
    view = group_view(graph)
    assert view.names[:2] == ("A", "B")
    item = {name: place for place, name in enumerate(view.names)}
    assert float(view.adjacency[item["B"], item["A"]]) == pytest.approx(-1 / 13)
    assert float(view.adjacency[item["B"], item["e0"]]) == pytest.approx(-2 / 13)
    assert float(view.adjacency[item["p"], item["B"]]) == pytest.approx(0.7)
    assert float(view.influence[item["A"]]) == pytest.approx(0.42)
    assert view.members[1] == ("l1a", "l1b")
    assert sum(map(len, view.members)) == len(graph)


def test_edges_inside_a_group_are_not_shown() -> None:
    view = group_view(hand_graph(groups={"chain": ("l0a", "l1a")}))
    assert float(view.adjacency[0, 0]) == 0.0
    assert float(view.adjacency[0].abs().sum()) == pytest.approx(1.0)


def twins(factor: float, sign: float) -> AttributionGraph:
    """l0c reads and writes as l0a does, rescaled, or with the opposite effect."""
    twin = Node(id="l0c", kind="latent", layer=0, position=1, index=5, value=0.1)
    edges = {("t0", "l0c"): 3 * factor, ("t1", "l0c"): -factor, ("l0c", "l1a"): 2 * sign}
    return graph_of((*NODES, twin), {**EDGES, **edges}, TOTALS, {"p": 0.6, "q": 0.2})


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e4])
def test_latents_of_one_role_are_grouped_whatever_their_scale(factor: float) -> None:
    groups = twins(factor, 1.0).with_labels({"l0a": "capital"}).group_by_influence(0.99).groups
    assert groups == {"capital": ("l0a", "l0c")}


def test_a_latent_with_the_opposite_effect_is_no_companion() -> None:
    assert twins(1.0, -1.0).group_by_influence(0.6).groups == {}


def test_grouping_needs_latents_and_a_similarity_in_range() -> None:
    assert (
        graph_of(NODES[:1] + NODES[11:], {("t0", "p"): 1.0}, {}, {"p": 1.0})
        .group_by_influence(0.5)
        .groups
        == {}
    )
    with pytest.raises(ConfigError, match="similarity"):
        hand_graph().group_by_influence(0.0)


def test_groups_cover_each_latent_once_at_most() -> None:
    graph = random_graph(8, n_latents=50).group_by_influence(0.15)
    members = [one for ids in graph.groups.values() for one in ids]
    assert len(members) == len(set(members)) > 4
    assert all(len(ids) > 1 for ids in graph.groups.values())


def test_the_figure_places_the_prompt_across_and_layers_upward() -> None:
    graph = hand_graph(pinned=("l0b",))
    figure: Any = graph_figure(graph)
    nodes = {trace.name: trace for trace in figure.data if trace.name}
    assert list(nodes["token"].x) == [0, 1, 2]
    assert set(nodes["token"].y) == {0}
    assert sorted(set(nodes["latent"].y)) == [1, 2]
    assert set(nodes["logit"].y) == {3}
    assert list(figure.layout.yaxis.ticktext) == ["input", "layer 0", "layer 1", "output"]
    assert list(figure.layout.xaxis.ticktext) == ["&lt;s&gt;", " capital", " is"]
    sizes = dict(zip(["l0a", "l0b", "l1a", "l1b"], nodes["latent"].marker.size, strict=True))
    assert sizes["l1a"] > sizes["l1b"] > sizes["l0a"]
    assert sizes["l1b"] == pytest.approx(sizes["l0b"])


def lines_of(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.mode == "lines"]


def test_the_figure_draws_signs_in_two_colors_and_keeps_the_strongest_edges() -> None:
    graph = hand_graph()
    lines = lines_of(graph_figure(graph))
    drawn = {"#d9730d": 0, "#2c6fbb": 0}
    for trace in lines:
        drawn[trace.line.color] += trace.x.count(None)
    assert drawn == {"#d9730d": 9, "#2c6fbb": 5}
    (strongest,) = lines_of(graph_figure(graph, max_edges=1))
    assert strongest.line.width == max(trace.line.width for trace in lines)
    assert strongest.x.count(None) == 1


def test_names_that_would_overlap_are_left_out_but_for_answers_and_pins() -> None:
    graph = random_graph(1, n_latents=80, n_tokens=2)
    graph = graph.with_labels(
        lambda node: f"quite a long name {node.id}" if node.kind == "latent" else None
    )
    figure: Any = graph_figure(graph.pin(["f0", "f2"]), max_labels=60)
    texts = [note.text for note in figure.layout.annotations]
    assert {
        "logit 50%",
        "logit 25%",
        "logit 17%",
        "quite a long name f0",
        "quite a long name f2",
    } <= set(texts)
    assert len(texts) < 60
    assert len(graph_figure(graph, max_labels=0).layout.annotations) == 3  # type: ignore[attr-defined]


def test_crowded_cells_keep_nodes_apart() -> None:
    figure: Any = graph_figure(random_graph(1, n_latents=80, n_tokens=2), max_labels=0)
    points = [
        point for trace in figure.data if trace.name for point in zip(trace.x, trace.y, strict=True)
    ]
    assert len(set(points)) == len(points)
    assert all(abs(x - round(x)) < 0.5 for x, _ in points)


HOSTILE = "<img src=x onerror=alert(1)>"


def test_hostile_text_is_escaped_in_the_figure() -> None:
    graph = hand_graph(tokens=("<s>", HOSTILE, "x"), groups={HOSTILE: ("l0a",)})
    graph = graph.with_labels({"l0a": HOSTILE, "p": HOSTILE})
    text = graph_figure(graph).to_json() or ""
    text = text.encode().decode("unicode_escape")
    assert "&lt;img" in text
    assert "<img" not in text


def test_the_page_says_what_it_must(tmp_path: Path) -> None:
    graph = random_graph(3, n_latents=60).prune(0.7).group_by_influence(0.2)
    path = save_page(graph, tmp_path / "page.html")
    page = path.read_text()
    for expected in (
        "Replacement",
        "Completeness",
        "Strongest paths",
        "Do the sums close?",
        "Groups",
    ):
        assert expected in page
    assert f"{graph.replacement_score():.4f}" in page
    assert "of influence, in" in page
    assert 'role="alert"' not in page.partition("<script")[0] or graph.replacement_score() < 0.5


def test_the_page_warns_of_sums_that_do_not_close_and_of_errors_that_prevail() -> None:
    wrong = graph_of(NODES, {**EDGES, ("e0", "l1a"): -200.0}, TOTALS, {"p": 0.6})
    page = graph_page(wrong)
    assert "do not close" in page
    assert "ends at the prompt; the rest" in page
    assert "do not close" not in graph_page(hand_graph())


def test_the_page_of_a_graph_without_scores_says_so() -> None:
    assert "has no scores:" in graph_page(graph_of(NODES, EDGES, TOTALS, {}))


def test_hostile_text_is_escaped_in_the_page(tmp_path: Path) -> None:
    text = f"</script><script>alert(1)</script>{HOSTILE}\ud800"
    graph = hand_graph(tokens=("<s>", text, "x"), groups={text: ("l0a",)}, metadata={"model": text})
    page = save_page(graph.with_labels({"l0a": text, "p": text}), tmp_path / "p.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page


def test_views_do_not_depend_on_the_order_of_nodes() -> None:
    graph = random_graph(6, n_latents=30)
    order = torch.randperm(len(graph), generator=torch.Generator().manual_seed(1))
    shuffled = AttributionGraph.from_adjacency(
        [graph.nodes[at] for at in order],
        graph.adjacency()[order][:, order],
        graph.totals[order],
        graph.weights[order],
        graph.tokens,
        graph.token_ids,
    )
    mine = [[node.id for node in path.nodes] for path in strongest_paths(graph, 20)]
    theirs = [[node.id for node in path.nodes] for path in strongest_paths(shuffled, 20)]
    assert mine == theirs
    groups = [{frozenset(ids) for ids in one.group_by_influence(0.2).groups.values()}
              for one in (graph, shuffled)]  # fmt: skip
    assert groups[0] == groups[1]
