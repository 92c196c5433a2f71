"""GraphML, DOT, cytoscape and CSV: all numbers are there, and hostile text stays text."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from saelab.errors import FormatError
from saelab.graphs import AttributionGraph, Node
from saelab.graphs.tables import safe_cell
from saelab.graphs.texts import one_line, visible
from tests.graphs.by_hand import graph_of, hand_graph, random_graph

HOSTILE = (
    '"];\n evil [label="owned',
    "trailing\\",
    "\\N\\G\\l",
    "&quot;&#65;",
    "<b>bold</b></data><node id='x'/>",
    "]]><!--",
    '=HYPERLINK("http://a.example")',
    "+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "  =1",
    "'quoted",
    'a,b;"c"\r\nd',
    "\x00\x07\x1b[31m\ufffe",
    "\u202eabc\u2066",
    "\ud800",
)
NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"


def hostile_graph(text: str) -> AttributionGraph:
    graph = hand_graph(tokens=("<s>", text, " is"), metadata={"model": text})
    return graph.with_labels({"l0a": text}).group({text: ["l0a", "l0b"]})


def test_graphml_has_every_number_by_declared_type(tmp_path: Path) -> None:
    graph = random_graph(2).prune(0.8)
    root = ET.parse(graph.export(tmp_path / "g.graphml", format="graphml")).getroot()
    keys = {one.get("id"): one for one in root.iter(f"{NAMESPACE}key")}
    assert {key.get("attr.type") for key in keys.values()} <= {
        "string",
        "long",
        "double",
        "boolean",
    }
    weights = {}
    for edge in root.iter(f"{NAMESPACE}edge"):
        data = {keys[one.get("key")].get("attr.name"): one.text for one in edge}
        weights[edge.get("source"), edge.get("target")] = float(data["weight"] or "")
    expected = {
        (graph.nodes[s].id, graph.nodes[t].id): w
        for s, t, w in zip(
            graph.source.tolist(), graph.target.tolist(), graph.weight.tolist(), strict=True
        )
    }
    assert weights == expected
    nodes = list(root.iter(f"{NAMESPACE}node"))
    assert [node.get("id") for node in nodes] == [node.id for node in graph.nodes]
    texts = [one.text for node in nodes for one in node]
    assert not {None, "None", "nan", "True", "False"} & set(texts)


def test_networkx_reads_the_graphml(tmp_path: Path) -> None:
    networkx = pytest.importorskip("networkx")
    graph = hand_graph(pinned=("l1a",))
    read = networkx.read_graphml(graph.export(tmp_path / "g.graphml", format="graphml"))
    assert read.edges["l1b", "q"]["weight"] == -3.0
    assert read.nodes["l1a"]["pinned"] is True
    assert read.nodes["l0a"]["position"] == 1
    assert "total" not in read.nodes["t0"], "what is not known is not there"
    matrix = networkx.to_numpy_array(read, nodelist=[n.id for n in graph.nodes], weight="weight")
    assert torch.equal(torch.tensor(matrix.T, dtype=torch.float32), graph.adjacency())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_graphml(tmp_path: Path, text: str) -> None:
    root = ET.parse(hostile_graph(text).export(tmp_path / "g.graphml", format="graphml")).getroot()
    nodes = {node.get("id"): node for node in root.iter(f"{NAMESPACE}node")}
    assert len(nodes) == 13
    labels = [d.text for d in nodes["l0a"] if d.get("key") == "node_label"]
    assert labels == [one_line(text)]


def test_ids_that_graphml_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    nodes = (
        Node(id="a\x00", kind="latent", layer=0),
        Node(id="a\\x00", kind="latent", layer=0),
        Node(id="p", kind="logit", position=2),
    )
    graph = graph_of(nodes, {("a\x00", "p"): 1.0}, {}, {"p": 1.0})
    with pytest.raises(FormatError, match="Two nodes would be"):
        graph.export(tmp_path / "g.graphml", format="graphml")


@pytest.mark.parametrize("text", ("plain", *HOSTILE))
def test_hostile_text_stays_inside_its_quotes_in_dot(tmp_path: Path, text: str) -> None:
    dot = hostile_graph(text).export(tmp_path / "g.dot", format="dot").read_text()
    outside = re.sub(r'"(?:\\.|[^"\\])*"', '""', dot)
    assert '"' not in outside.replace('""', "")
    statements = [line for line in outside.splitlines() if re.match(r"  n\d+", line)]
    assert sum("->" in line for line in statements) == 14
    assert sum("->" not in line for line in statements) == 13
    assert "evil" not in outside
    assert not re.search(r"(?<!\\)(?:\\\\)*\\[NGEHLTlr]", dot), "no escape that Graphviz obeys"
    assert not re.search(r"&(?!amp;)", dot)


def test_dot_ranks_layers_and_colors_signs(tmp_path: Path) -> None:
    graph = hand_graph()
    dot = graph.export(tmp_path / "g.dot", format="dot").read_text()
    ranks = re.findall(r"rank=same; ([^}]*); }", dot)
    assert [len(rank.split("; ")) for rank in ranks] == [5, 3, 3, 2]
    l1b, q, p = graph.place("l1b"), graph.place("q"), graph.place("p")
    assert re.search(rf'n{l1b} -> n{q} \[color="#2c6fbb".*tooltip="-3"', dot)
    assert re.search(rf'n{l1b} -> n{p} \[color="#d9730d".*tooltip="\+2"', dot)


@pytest.mark.parametrize("text", ("plain", *HOSTILE))
def test_cytoscape_has_all_elements_with_ends_and_no_nan(tmp_path: Path, text: str) -> None:
    path = hostile_graph(text).export(tmp_path / "g.json", format="cytoscape")
    body = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    nodes = {one["data"]["id"]: one for one in body["elements"]["nodes"]}
    edges = body["elements"]["edges"]
    assert len(nodes) == 14
    assert len(edges) == 14
    assert all({e["data"]["source"], e["data"]["target"]} <= set(nodes) for e in edges)
    assert nodes["node:l0a"]["data"]["parent"] == nodes["node:l0b"]["data"]["parent"] == "group:0"
    assert nodes["node:l0a"]["data"]["label"] == one_line(text)
    assert nodes["node:p"]["position"]["y"] < nodes["node:l1a"]["position"]["y"], "y grows down"
    places = [tuple(one["position"].values()) for one in nodes.values() if "position" in one]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, text: str) -> None:
    folder = hostile_graph(text).export(tmp_path / "tables", format="csv")
    for name in ("nodes.csv", "edges.csv"):
        with (folder / name).open(newline="", encoding="utf-8") as handle:
            for row in csv.reader(handle):
                for cell in row:
                    if cell.lstrip()[:1] in tuple("=+-@"):
                        float(cell)  # a negative number is none


def test_csv_has_every_number_and_an_empty_cell_for_what_is_not_known(tmp_path: Path) -> None:
    graph = random_graph(3).prune(0.8)
    folder = graph.export(tmp_path, format="csv")
    with (folder / "nodes.csv").open(newline="") as handle:
        nodes = list(csv.DictReader(handle))
    with (folder / "edges.csv").open(newline="") as handle:
        edges = list(csv.DictReader(handle))
    places = {row["id"]: place for place, row in enumerate(nodes)}
    rebuilt = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for row in edges:
        rebuilt[places[row["target"]], places[row["source"]]] = float(row["weight"])
    assert torch.equal(rebuilt, graph.adjacency())
    assert [float(row["influence"]) for row in nodes] == graph.influence().tolist()
    assert {row["total"] for row in nodes if row["kind"] == "token"} == {""}


def test_a_cell_can_be_read_back_exactly() -> None:
    for text in ("'=1", "=1", "''", "plain", " -1", "\uff1d1"):
        cell = safe_cell(text)
        assert (cell[1:] if cell.startswith("'") else cell) == text


def test_what_is_hidden_is_made_visible() -> None:
    assert visible("a\nb\tc") == "a\nb\tc"
    assert one_line("a\nb\r\x7f\u202e\ud800\U0001fffe") == r"a\nb\r\x7f\u202e\ud800\U0001fffe"
    assert one_line("naïve 日本 \U0001f600") == "naïve 日本 \U0001f600"
    assert one_line("abcdef", 4) == "abc\u2026"
