"""The WebGL drawing: where nodes go, what a click gives, signs by shape and hue, hostile text."""

from typing import Any

import pytest

from saelab.graphs import group_drawing, layered_figure, node_drawing
from saelab.graphs.agreement_figure import agreement_figure
from tests.graphs.by_hand import hand_graph, random_graph

HOSTILE = "<img src=x onerror=alert(1)>"


def test_the_prompt_runs_across_and_layers_upward() -> None:
    drawn = node_drawing(hand_graph())
    at = {item.id: item for item in drawn.items}
    assert drawn.rows == ("input", "layer 0", "layer 1", "output")
    assert [text for _, text in drawn.columns] == ["biases", "<s>", " capital", " is"]
    assert {at[name].y for name in ("t0", "t1", "t2")} == {0}
    assert {at[name].y for name in ("l0a", "l0b", "e0")} == {1}
    assert at["p"].y == at["q"].y == 3
    middles = [x for x, _ in drawn.columns]
    assert middles == sorted(middles)
    assert abs(at["t0"].x - middles[1]) < 1e-9
    # Most influential in the middle of its cell.
    assert abs(at["l0b"].x - middles[2]) < abs(at["l0a"].x - middles[2])


@pytest.mark.parametrize("n_latents", [80, 200])
def test_crowded_cells_keep_nodes_apart_and_in_their_column(n_latents: int) -> None:
    drawn = node_drawing(random_graph(1, n_latents=n_latents, n_tokens=2))
    assert len({(item.x, item.y) for item in drawn.items}) == len(drawn.items)
    middle = (drawn.columns[0][0] + drawn.columns[1][0]) / 2
    left = [item.x for item in drawn.items if item.id.startswith("f") and int(item.id[1:]) % 2 == 0]
    assert max(left) < middle + 1e-9
    assert all(abs(item.y - round(item.y)) < 0.5 for item in drawn.items)


def traces(figure: Any) -> list[Any]:
    return list(figure.data)


def test_signs_are_told_by_shape_and_hue() -> None:
    figure: Any = layered_figure(node_drawing(hand_graph()))
    found = {}
    for trace in traces(figure):
        assert trace.type == "scattergl"
        for one in trace.customdata if trace.customdata is not None else ():
            found[one] = (trace.marker.symbol, trace.marker.color)
    # l1a adds 5 to p, l0b takes 10 away.
    assert found["l1a"] == ("triangle-up", "#d9730d")
    assert found["l0b"] == ("triangle-down", "#2c6fbb")
    assert found["e0"][0] == "diamond-open" and found["p"][0] == "hexagon"
    lines = {(t.line.color, t.line.dash) for t in traces(figure) if t.mode == "lines"}
    assert lines == {("#d9730d", "solid"), ("#2c6fbb", "dot")}


def count_of_lines(figure: Any, above: float = 0.0) -> int:
    some = [t for t in traces(figure) if t.mode == "lines" and t.opacity > above]
    return sum(trace.x.count(None) for trace in some)


def test_the_edges_of_the_chosen_node_come_first() -> None:
    drawn = node_drawing(hand_graph())
    assert count_of_lines(layered_figure(drawn)) == 14
    assert count_of_lines(layered_figure(drawn, max_lines=3)) == 3
    # l1a reads four nodes and feeds one; nothing else is as visible.
    assert count_of_lines(layered_figure(drawn, selected="l1a", max_lines=5)) == 5
    assert count_of_lines(layered_figure(drawn, selected="l1a"), above=0.25) == 5
    names = [note.text for note in layered_figure(drawn, selected="t0").layout.annotations]  # type: ignore[attr-defined]
    assert "&lt;s&gt;" in names


def test_a_group_is_one_item_where_its_members_are() -> None:
    graph = hand_graph(groups={"chain": ("l0a", "l1a")})
    drawn = group_drawing(graph)
    by_id = {item.id: item for item in drawn.items}
    whole = {item.id: item for item in node_drawing(graph).items}
    assert len(drawn.items) == len(graph) - 1
    assert by_id["chain"].y == pytest.approx(1.5)
    assert by_id["chain"].push == pytest.approx(whole["l0a"].push + whole["l1a"].push)
    assert by_id["chain"].influence == pytest.approx(0.45)
    line = next(
        one
        for one in drawn.lines
        if (drawn.items[one.source].id, drawn.items[one.target].id) == ("chain", "p")
    )
    assert line.weight == pytest.approx(0.5) and line.score == pytest.approx(0.3)
    assert "chain" in [note.text for note in layered_figure(drawn).layout.annotations]  # type: ignore[attr-defined]


def test_hostile_text_is_escaped() -> None:
    graph = hand_graph(tokens=("<s>", HOSTILE, "x"), groups={HOSTILE: ("l0a", "l0b")})
    graph = graph.with_labels({"l1a": HOSTILE, "p": HOSTILE}).pin(["l1a"])
    for drawn in (node_drawing(graph), group_drawing(graph)):
        figure = layered_figure(drawn, pinned=graph.pinned, groups={HOSTILE: ("l0a",)})
        text = (figure.to_json() or "").encode().decode("unicode_escape")
        # Ids go to the browser as data, and are never drawn.
        shown = text.replace(f'"customdata":["{HOSTILE}"]', "")
        assert "&lt;img" in shown and "<img" not in shown.replace(f'"{HOSTILE}"', "")
    said = agreement_figure([HOSTILE], [1.0], [2.0], [1.5]).to_json() or ""
    assert "<img" not in said.encode().decode("unicode_escape")


def test_a_graph_of_one_node_is_drawn() -> None:
    graph = hand_graph().subgraph(["p"])
    assert len(layered_figure(node_drawing(graph)).layout.annotations) == 1  # type: ignore[attr-defined]
