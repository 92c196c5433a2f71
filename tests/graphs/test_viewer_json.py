"""What circuit-tracer's page and Neuronpedia read: one test for each trap, and the way back."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab.errors import FormatError
from saelab.graphs import AttributionGraph, Node, read_viewer_json, viewer_json, viewer_query
from saelab.graphs.viewer_nodes import cantor
from tests.graphs.by_hand import EDGES, NODES, TOTALS, graph_of, hand_graph, random_graph

BOTH = ("neuronpedia", "circuit-tracer")


def exported(graph: AttributionGraph, folder: Path, format: str, **options: Any) -> dict[str, Any]:
    path = graph.export(folder / "paris.json", format=format, **options)
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def with_nodes(*more: Node, edges: dict[tuple[str, str], float] | None = None) -> AttributionGraph:
    return graph_of((*NODES, *more), {**EDGES, **(edges or {})}, TOTALS, {"p": 0.6, "q": 0.2})


def by_id(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["node_id"]: node for node in body["nodes"]}


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("text", [" Paris", 'a" (p=9.999) "b', "", "(p=", "\x00\u202e", "' k\"'"])
def test_a_logit_text_has_its_token_in_quotes_and_then_its_probability(
    tmp_path: Path, format: str, text: str
) -> None:
    """Both viewers take what is between the first quotes, and what follows the first "(p="."""
    body = exported(hand_graph().with_labels({"p": text}), tmp_path, format)
    clerp = by_id(body)["3_40_2"]["clerp"]
    assert float(clerp.split("(p=")[1].split(")")[0]) == pytest.approx(0.6)
    assert len(clerp.split('"')) == 3
    if text == " Paris":
        assert clerp == 'Output " Paris" (p=0.600)'


@pytest.mark.parametrize("format", BOTH)
def test_an_error_has_no_id_of_a_latent(tmp_path: Path, format: str) -> None:
    """circuit-tracer once called the error of layer 1 at 2 what is latent 1 of layer 0 at 2."""
    latent = Node(id="l0c", kind="latent", layer=0, position=2, index=1, hook="blocks.0.mlp")
    edges = {("t2", "l0c"): 1.0, ("l0c", "q"): 1.0}
    body = exported(with_nodes(latent, edges=edges), tmp_path, format)
    names = [node["node_id"] for node in body["nodes"]]
    assert len(set(names)) == len(names)
    assert len({node["jsNodeId"] for node in body["nodes"]}) == len(names)
    assert {"0_1_2", "1_error_mlp_2"} <= set(names)


def test_a_prompt_of_one_token_is_refused_where_the_page_would_hide_everything(
    tmp_path: Path,
) -> None:
    nodes = (NODES[0], Node(id="f", kind="latent", layer=2, position=0, index=1), NODES[11])
    nodes = (*nodes[:2], Node(id="p", kind="logit", position=0, index=40, probability=0.6))
    edges = {("t0", "f"): 1.0, ("f", "p"): 1.0}
    graph = graph_of(nodes, edges, {}, {"p": 0.6}, tokens=("a",))
    with pytest.raises(FormatError, match="prompt of one token"):
        graph.export(tmp_path / "g.json", format="circuit-tracer")
    assert not list(tmp_path.iterdir())
    assert len(exported(graph, tmp_path, "neuronpedia")["nodes"]) == 3


def test_a_latent_at_more_than_two_thirds_of_the_positions_is_warned_of(tmp_path: Path) -> None:
    more = [
        Node(id=f"x{p}", kind="latent", layer=0, position=p, index=99, value=1.0) for p in range(3)
    ]
    edges = {("t0", f"x{p}"): 1.0 for p in range(3)} | {(f"x{p}", "q"): 1.0 for p in range(3)}
    graph = with_nodes(*more, edges=edges)
    with pytest.warns(UserWarning, match="hide 1 latents"):
        exported(graph, tmp_path, "circuit-tracer")
    exported(
        with_nodes(*more[:2], edges={k: 1.0 for k in edges if "x2" not in k}), tmp_path, BOTH[1]
    )


@pytest.mark.parametrize("format", BOTH)
def test_layers_count_from_one_where_zero_is_the_highest(tmp_path: Path, format: str) -> None:
    """`if (!maxLayer)` takes layer 0 for none; the way back counts from 0 again."""
    nodes = tuple(n for n in NODES if n.id in ("t0", "t1", "l0a", "p"))
    edges = {("t0", "l0a"): 3.0, ("t1", "l0a"): -1.0, ("l0a", "p"): 2.0}
    graph = graph_of(nodes, edges, {}, {"p": 0.6})
    body = exported(graph, tmp_path, format)
    assert by_id(body)["1_7_1"]["layer"] == "1"
    assert by_id(body)["1_7_1"]["feature"] == cantor(1, 7)
    assert {"3_40_2"} <= set(by_id(body))
    back = read_viewer_json(tmp_path / "paris.json")
    assert back.node("1_7_1").layer == 0
    assert exported(hand_graph(), tmp_path, format)["nodes"][0]["layer"] == "0"


@pytest.mark.parametrize("format", BOTH)
def test_a_graph_without_any_layer_is_refused(tmp_path: Path, format: str) -> None:
    graph = graph_of((NODES[0], NODES[11]), {("t0", "p"): 1.0}, {}, {"p": 0.6})
    with pytest.raises(FormatError, match="without any latent or error"):
        graph.export(tmp_path / "g.json", format=format)


@pytest.mark.parametrize("format", BOTH)
def test_influence_is_the_cumulative_share_in_the_whole_graph(tmp_path: Path, format: str) -> None:
    """The slider keeps what is at or below it, so all that pruning kept is at or below its end."""
    graph = random_graph(3, n_latents=60)
    pruned = graph.prune(0.7)
    body = exported(pruned, tmp_path, format)
    of_whole = dict(zip((n.id for n in graph.nodes), graph.cumulative().tolist(), strict=True))
    for node in pruned.nodes:
        if node.kind == "latent":
            name = f"{node.layer}_{node.index}_{node.position}"
            assert by_id(body)[name]["influence"] == of_whole[node.id]
    most = max(
        n["influence"] for n in body["nodes"] if n["feature_type"] == "cross layer transcoder"
    )
    places = graph.cumulative().sort().values
    assert most <= float(places[places >= 0.7][0])
    assert body["metadata"]["node_threshold"] == 0.7
    assert body["metadata"]["pruning_settings"] == {"node_threshold": 0.7, "edge_threshold": 0.98}


@pytest.mark.parametrize("format", BOTH)
def test_the_slider_never_hides_embeddings_and_logits(tmp_path: Path, format: str) -> None:
    body = exported(hand_graph(), tmp_path, format)
    kinds = {node["feature_type"] for node in body["nodes"] if node["influence"] is None}
    assert kinds == {"embedding", "logit"}
    assert body["metadata"]["node_threshold"] == 1.0


def test_feature_files_of_your_own_need_neither_schema_version_nor_source_set(
    tmp_path: Path,
) -> None:
    own = exported(hand_graph(), tmp_path, "neuronpedia", feature_url="https://a.example/f/")
    assert own["metadata"]["feature_details"] == {"feature_json_base_url": "https://a.example/f"}
    assert "schema_version" not in own["metadata"]
    theirs = exported(hand_graph(), tmp_path, "neuronpedia", source_set="some-transcoders")
    assert theirs["metadata"]["feature_details"] == {"neuronpedia_source_set": "some-transcoders"}
    assert theirs["metadata"]["schema_version"] == 1
    with pytest.raises(FormatError, match="one of the two"):
        exported(hand_graph(), tmp_path, "neuronpedia", source_set="a", feature_url="b")


def test_an_upload_has_at_least_one_kibibyte(tmp_path: Path) -> None:
    tiny = graph_of(
        (Node(id="f", kind="latent", layer=1, position=0, index=1), NODES[11]),
        {("f", "p"): 1.0},
        {},
        {"p": 0.6},
        tokens=("", "", ""),
    )
    path = tiny.export(tmp_path / "g.json")
    assert path.stat().st_size >= 1024
    assert len(read_viewer_json(path)) == 2


def test_an_upload_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_json, "LARGEST", 5000)
    with pytest.raises(FormatError, match="Prune the graph first"):
        random_graph(0).export(tmp_path / "g.json", format="neuronpedia")
    assert not (tmp_path / "g.json").exists()


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("name", ["a b.json", "a/../ü.json", "a?b.json", ".json", "a\n.json"])
def test_a_slug_the_viewers_refuse_is_refused(tmp_path: Path, format: str, name: str) -> None:
    with pytest.raises(FormatError, match="slug"):
        hand_graph().export(tmp_path / Path(name).name, format=format)


def test_a_scan_is_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="scan"):
        exported(hand_graph(), tmp_path, "neuronpedia", scan="google/gemma")
    body = exported(hand_graph(metadata={"model": "google/gemma 2"}), tmp_path, "neuronpedia")
    assert body["metadata"]["scan"] == "google-gemma-2"


@pytest.mark.parametrize("format", BOTH)
def test_biases_are_left_out_and_told_since_unknown_kinds_spoil_the_scores(
    tmp_path: Path, format: str
) -> None:
    body = exported(hand_graph(), tmp_path, format)
    kinds = [node["feature_type"] for node in body["nodes"]]
    order = ["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]
    assert kinds == sorted(kinds, key=order.index), "logits are the last block"
    assert "most to p (+1)" in body["metadata"]["info"]["description"]


@pytest.mark.parametrize("format", BOTH)
def test_position_embeddings_are_added_to_the_tokens(tmp_path: Path, format: str) -> None:
    graph = with_nodes(edges={("t1", "l1a"): 0.5})
    links = exported(graph, tmp_path, format)["links"]
    found = {(link["source"], link["target"]): link["weight"] for link in links}
    assert found["E_12_1", "1_7_2"] == 1.5


@pytest.mark.parametrize("format", BOTH)
def test_errors_at_one_place_are_added_up(tmp_path: Path, format: str) -> None:
    rest = Node(id="rest", kind="error", layer=0, position=1, hook="blocks.0.mlp")
    attention = Node(id="att", kind="error", layer=0, position=1, hook="blocks.0.attn.hook_z")
    graph = with_nodes(rest, attention, edges={("rest", "l1a"): 3.0, ("att", "l1a"): 7.0})
    body = exported(graph, tmp_path, format)
    found = {(link["source"], link["target"]): link["weight"] for link in body["links"]}
    assert found["0_error_mlp_1", "1_7_2"] == 1.0
    assert found["0_error_attn_1", "1_7_2"] == 7.0
    types = {node["feature_type"] for node in body["nodes"] if "error" in node["node_id"]}
    assert ("lorsa error" in types) == (format == "neuronpedia")


@pytest.mark.parametrize("format", BOTH)
def test_logits_are_marked_so_that_one_is_selected(tmp_path: Path, format: str) -> None:
    body = exported(hand_graph(), tmp_path, format)
    logits = [node for node in body["nodes"] if node["feature_type"] == "logit"]
    assert all(node["isLogit"] for node in logits)
    assert [node["token_prob"] for node in logits] == pytest.approx([0.6, 0.2])
    assert [node["is_target_logit"] for node in logits] == [True, False]
    assert body["qParams"]["clickedId"] == logits[0]["node_id"] == "3_40_2"
    assert {node["ctx_idx"] for node in logits} == {2}


@pytest.mark.parametrize("format", BOTH)
def test_every_node_has_every_key_with_its_type(tmp_path: Path, format: str) -> None:
    body = exported(random_graph(1).prune(0.8), tmp_path, format)
    text = ("node_id", "layer", "feature_type", "jsNodeId", "clerp")
    for node in body["nodes"]:
        assert all(type(node[key]) is str for key in text)
        assert all(type(node[key]) is int for key in ("feature", "ctx_idx", "run_idx"))
        assert type(node["token_prob"]) is float
        if node["feature_type"] == "cross layer transcoder":
            layer, index, position = map(int, node["node_id"].split("_"))
            assert node["feature"] == (layer + index) * (layer + index + 1) // 2 + index
            assert node["ctx_idx"] == position
        if node["feature_type"] == "embedding":
            assert (node["layer"], node["feature"]) == ("E", node["ctx_idx"])
        if node["feature_type"].endswith("error"):
            assert node["feature"] == -1
    names = {node["node_id"] for node in body["nodes"]}
    assert all({link["source"], link["target"]} <= names for link in body["links"])
    needed = {"slug", "scan", "prompt_tokens", "prompt", "node_threshold", "info"}
    assert needed <= set(body["metadata"])
    assert body["metadata"]["slug"] == "paris"
    if format == "circuit-tracer":
        assert body["metadata"]["transcoder_list"] == []
        assert body["metadata"]["schema_version"] == 1


def test_the_scan_is_the_name_of_the_model_that_was_traced(tmp_path: Path) -> None:
    about = {"name": "org/a model", "weights": "sha256:12", "conventions": "raw"}
    graph = hand_graph(metadata={"model": about, "n_layers": 2})
    assert exported(graph, tmp_path, "circuit-tracer")["metadata"]["scan"] == "org-a-model"


def test_heads_are_lorsa_for_neuronpedia_and_named_latents_for_circuit_tracer(
    tmp_path: Path,
) -> None:
    head = Node(id="h", kind="head", layer=1, position=2, index=5)
    attention = Node(id="z", kind="latent", layer=1, position=2, index=7, hook="blocks.1.attn.z")
    edges = {("l0a", "h"): 1.0, ("h", "q"): 2.0, ("t0", "z"): 1.0, ("z", "q"): 1.0}
    graph = with_nodes(head, attention, edges=edges)
    for format, kind in (("neuronpedia", "lorsa"), ("circuit-tracer", "cross layer transcoder")):
        body = by_id(exported(graph, tmp_path, format))
        assert body["1_lor_5_2"]["feature_type"] == body["1_lor_7_2"]["feature_type"] == kind
        assert body["1_lor_5_2"]["clerp"] == "a1.h5"
        back = read_viewer_json(tmp_path / "paris.json")
        assert back.node("1_lor_5_2").kind == "head"
        assert back.node("1_lor_7_2").kind == "latent"


@pytest.mark.parametrize("format", BOTH)
def test_two_dictionaries_of_a_layer_keep_their_latents_apart(tmp_path: Path, format: str) -> None:
    other = Node(id="o", kind="latent", layer=0, position=1, index=7, hook="blocks.0.resid")
    graph = with_nodes(other, edges={("t0", "o"): 1.0, ("o", "q"): 1.0})
    assert {"0_7_1", "0_cro2_7_1"} <= set(by_id(exported(graph, tmp_path, format)))
    assert read_viewer_json(tmp_path / "paris.json").node("0_cro2_7_1").index == 7


@pytest.mark.parametrize("format", BOTH)
def test_nodes_that_would_share_an_id_are_refused(tmp_path: Path, format: str) -> None:
    twin = Node(id="twin", kind="latent", layer=0, position=1, index=7, hook="blocks.0.mlp")
    with pytest.raises(FormatError, match="'l0a' and 'twin' would both be '0_7_1'"):
        with_nodes(twin, edges={("twin", "q"): 1.0}).export(tmp_path / "g.json", format=format)


@pytest.mark.parametrize("format", BOTH)
def test_a_read_out_that_is_no_token_is_beyond_the_vocabulary(tmp_path: Path, format: str) -> None:
    target = Node(id="d", kind="target", position=2, label="Paris - Rome")
    graph = graph_of((*NODES, target), {**EDGES, ("l1a", "d"): 2.0}, {}, {"d": 1.0})
    body = exported(graph, tmp_path, format)
    one = next(node for node in body["nodes"] if node["feature"] >= 10_000_000)
    assert one["clerp"] == 'Output "Paris - Rome" (p=1.000)'
    back = read_viewer_json(tmp_path / "paris.json")
    assert [node.label for node in back.nodes if node.kind == "target"] == ["Paris - Rome"]


@pytest.mark.parametrize("format", BOTH)
def test_groups_and_pins_are_written_by_their_new_ids(tmp_path: Path, format: str) -> None:
    graph = hand_graph(groups={"capital, city": ("l0a", "l1a")}, pinned=("l1a", "e0"))
    params = exported(graph, tmp_path, format)["qParams"]
    assert params["supernodes"] == [["capital, city", "0_7_1", "1_7_2"]]
    assert params["pinnedIds"] == ["1_7_2", "0_error_mlp_1"]
    assert params["linkType"] == "both"
    back = read_viewer_json(tmp_path / "paris.json")
    assert back.groups == {"capital, city": ("0_7_1", "1_7_2")}
    assert back.pinned == ("1_7_2", "0_error_mlp_1")


def test_the_page_shows_groups_only_if_its_address_names_them() -> None:
    query = viewer_query(hand_graph(groups={"a&b": ("l0a",)}, pinned=("p",)), "paris")
    assert query.startswith("?slug=paris&pinnedIds=3_40_2&supernodes=")
    assert query.count("&") == 2
    assert query.endswith("%5B%5B%22a%26b%22%2C%20%220_7_1%22%5D%5D")


def test_the_folder_index_lists_each_slug_once(tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        hand_graph().export(tmp_path / f"{name}.json", format="circuit-tracer")
    index = json.loads((tmp_path / "graph-metadata.json").read_text())
    assert [one["slug"] for one in index["graphs"]] == ["b", "a"]
    assert index["graphs"][1] == json.loads((tmp_path / "a.json").read_text())["metadata"]


@pytest.mark.parametrize("text", ["", "[]", '{"graphs": 3}', '{"graphs": [1]}', '{"x": 1}'])
def test_a_damaged_folder_index_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "graph-metadata.json").write_text(text)
    with pytest.raises(FormatError, match="Move it away"):
        hand_graph().export(tmp_path / "a.json", format="circuit-tracer")
    assert (tmp_path / "graph-metadata.json").read_text() == text


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_exported_comes_back_with_the_same_adjacency(
    tmp_path: Path, format: str, seed: int
) -> None:
    graph = random_graph(seed).prune(0.9)
    graph.export(tmp_path / "g.json", format=format)
    back = read_viewer_json(tmp_path / "g.json")
    key = {"token": "E_{0.index}_{0.position}", "error": "{0.layer}_error_mlp_{0.position}"}
    key |= {"latent": "{0.layer}_{0.index}_{0.position}", "logit": "5_{0.index}_{0.position}"}
    order = [back.place(key[node.kind].format(node)) for node in graph.nodes]
    assert torch.equal(back.adjacency()[order][:, order], graph.adjacency())
    assert torch.equal(back.weights[order], graph.weights)
    assert back.tokens == graph.tokens
    assert back.token_ids == graph.token_ids
    for node, place in zip(graph.nodes, order, strict=True):
        one = back.nodes[place]
        assert (one.kind, one.layer, one.position, one.index, one.value) == (
            *(node.kind, node.layer, node.position, node.index, node.value),
        )
    torch.testing.assert_close(back.influence()[order], graph.influence())


def test_the_hand_graph_comes_back_without_its_bias(tmp_path: Path) -> None:
    hand_graph().export(tmp_path / "g.json")
    back = read_viewer_json(tmp_path / "g.json")
    found = {(edge.source.id, edge.weight) for edge in back.into("3_40_2")}
    assert found == {("1_7_2", 5.0), ("1_3_2", 2.0), ("1_error_mlp_2", -2.0)}
    assert back.node("3_40_2").label == " Paris"
    assert all(math.isnan(total) for total in back.totals)


CIRCUIT_TRACER: dict[str, Any] = {
    "metadata": {"slug": "a", "scan": "b", "prompt_tokens": ["<s>", " A"], "prompt": " A"},
    "qParams": {},
    "nodes": [
        {"node_id": "E_5_1", "layer": "E", "ctx_idx": 1, "feature_type": "embedding"},
        {
            "node_id": "0_1_1",
            "layer": "1",
            "ctx_idx": 1,
            "feature_type": "mlp reconstruction error",
        },
        {"node_id": "0_9_1", "layer": "0", "ctx_idx": 1, "feature_type": "cross layer transcoder"},
        {"node_id": "3_6_1", "layer": "3", "ctx_idx": 1, "feature_type": "logit", "token_prob": 1},
    ],
    "links": [
        {"source": "E_5_1", "target": "0_9_1", "weight": 2},
        {"source": "0_9_1", "target": "3_6_1", "weight": 0.1},
        {"source": "0_1_1", "target": "3_6_1", "weight": -0.25},
    ],
}


def test_a_file_as_circuit_tracer_writes_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(CIRCUIT_TRACER))
    graph = read_viewer_json(tmp_path / "g.json")
    assert [node.kind for node in graph.nodes] == ["token", "error", "latent", "logit"]
    assert [node.index for node in graph.nodes] == [5, None, 9, 6]
    assert graph.token_ids == (-1, 5)
    assert graph.weight.tolist() == [2.0, -0.25, 0.1]
    assert graph.weight.dtype == torch.float64, "0.1 is no float32"


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("links", 0, "source"), "gone", "no node has that id"),
        (("links", 0, "target"), "E_5_1", "cycle|nothing explains"),
        (("links", 0, "weight"), "heavy", "no attribution graph"),
        (("links", 0, "weight"), None, "no attribution graph"),
        (("nodes", 0, "ctx_idx"), 7, "2 tokens"),
        (("nodes", 2, "node_id"), "0_1_1", "no node has that id"),
        (("nodes",), CIRCUIT_TRACER["nodes"] + CIRCUIT_TRACER["nodes"][:1], "used twice, 'E_5_1'"),
        (("nodes", 2, "layer"), "x", "no attribution graph"),
        (("nodes", 2, "feature_type"), "mystery", "feature_type 'mystery'"),
        (("metadata", "prompt_tokens"), None, "no attribution graph"),
        (("metadata",), [], "no attribution graph"),
        (("nodes",), {}, "no attribution graph"),
        (("nodes",), "text", "no attribution graph"),
        (("qParams",), {"supernodes": [[]]}, "no attribution graph"),
        (("qParams",), {"supernodes": [["a", "gone"]]}, "no node has that id"),
    ],
)
def test_a_foreign_file_that_is_no_graph_is_refused(
    tmp_path: Path, where: tuple, value: object, message: str
) -> None:
    body = json.loads(json.dumps(CIRCUIT_TRACER))
    part = body
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    (tmp_path / "g.json").write_text(json.dumps(body))
    with pytest.raises(FormatError, match=message):
        read_viewer_json(tmp_path / "g.json")


def test_a_foreign_file_with_nan_or_without_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text(json.dumps(CIRCUIT_TRACER).replace("-0.25", "NaN"))
    with pytest.raises(FormatError, match="NaN"):
        read_viewer_json(path)
    for key in ("metadata", "nodes", "links"):
        path.write_text(json.dumps({k: v for k, v in CIRCUIT_TRACER.items() if k != key}))
        with pytest.raises(FormatError, match=f"it has no '{key}'"):
            read_viewer_json(path)
    with pytest.raises(FormatError, match="no such file"):
        read_viewer_json(tmp_path / "gone.json")


def test_names_of_unknown_formats_and_options_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=re.escape("there are neuronpedia, circuit-tracer, graphml")
    ):
        hand_graph().export(tmp_path / "g", format="gexf")
    with pytest.raises(FormatError, match="no option 'slug'; it has scan"):
        hand_graph().export(tmp_path / "g", format="neuronpedia", slug="x")
