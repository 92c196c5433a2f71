"""A graph on disk: the same bits back, and nothing damaged, altered or foreign taken for one."""

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab.errors import CheckpointError
from saelab.graphs import AttributionGraph
from tests.graphs.by_hand import hand_graph, random_graph

HOSTILE = (
    "</script><script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\x00\x1b[31m",
    "\ud800",
    "\U0001d518\n",
)


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("make", [hand_graph, lambda: random_graph(7, n_latents=60)])
def test_what_is_saved_is_what_is_loaded(
    tmp_path: Path, make: Callable[[], AttributionGraph], prune: bool
) -> None:
    graph = make().prune(0.7, 0.9) if prune else make()
    first = graph.nodes[0].id
    graph = graph.group({"one": [first]}).pin([first])
    loaded = AttributionGraph.load(graph.save(tmp_path / "deep" / "graph.json"))
    assert loaded == graph
    assert loaded.weight.dtype == graph.weight.dtype
    assert loaded.weight.equal(graph.weight)
    assert loaded.influence().equal(graph.influence())
    assert loaded.pruning == graph.pruning


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    graph = hand_graph(tokens=("<s>", text, " is"), metadata={"note": text})
    graph = graph.with_labels({"l0a": text}).group({text: ["l0a"]})
    path = graph.save(tmp_path / "g.json")
    assert AttributionGraph.load(path) == graph
    assert path.read_bytes().isascii()


def test_the_file_has_no_nan(tmp_path: Path) -> None:
    text = hand_graph().save(tmp_path / "g.json").read_text()
    assert not {"NaN", "Infinity"} & set(text.replace(",", " ").replace("]", " ").split())
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_spacing_may_change_but_no_digit(tmp_path: Path) -> None:
    graph = hand_graph()
    path = graph.save(tmp_path / "g.json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole, indent=3))
    assert AttributionGraph.load(path) == graph
    whole["graph"]["weight"][0] += 1e-7
    path.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="SHA-256"):
        AttributionGraph.load(path)


def test_two_hundred_damaged_files_are_refused_or_are_the_same_graph(tmp_path: Path) -> None:
    graph = hand_graph()
    path = graph.save(tmp_path / "g.json")
    whole = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for number in range(200):
        data = bytearray(whole)
        at = dice.randrange(len(data))
        match number % 5:
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data = data[:at]
            case 2:
                del data[at : at + dice.randrange(1, 40)]
            case 3:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
            case _:
                start = dice.randrange(len(data))
                data[at : at + 30] = data[start : start + 30]
        path.write_bytes(bytes(data))
        try:
            loaded = AttributionGraph.load(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert loaded == graph
    assert refused > 190


def resigned(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a saved graph and sign it again, as a careful adversary or a bad program would."""
    whole = json.loads(path.read_text())
    change(whole["graph"])
    body = json.dumps(whole["graph"], separators=(",", ":"))
    whole["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["source"].__setitem__(0, 99), "ends at node"),
        (lambda g: g["target"].__setitem__(0, -1), "ends at node"),
        (lambda g: g["source"].__setitem__(0, 2**70), "no sound graph"),
        (lambda g: g["source"].__setitem__(0, 1.5), "source has 1.5"),
        (lambda g: g["token_ids"].__setitem__(0, "1"), "token_ids has '1'"),
        (lambda g: g["nodes"][0].update(index=0.5), "index is 0.5"),
        (lambda g: g["nodes"][0].update(id=3), "id is 3"),
        (lambda g: g["weights"].__setitem__(-1, True), "weights has True"),
        (lambda g: g["weight"].__setitem__(0, "5"), "weight has '5'"),
        (lambda g: g["weight"].__setitem__(0, None), "weight has None"),
        (lambda g: g["weight"].__setitem__(0, 1e300), "must be finite"),
        (lambda g: g["weight"].pop(), "no sound graph"),
        (lambda g: g["totals"].pop(), "no sound graph"),
        (lambda g: g["nodes"].append(g["nodes"][0]), "used twice"),
        (lambda g: g["nodes"][0].pop("id"), "no sound graph"),
        (lambda g: g["nodes"][0].update(kind="villain"), "no sound graph"),
        (lambda g: g["nodes"][0].update(extra=1), "no sound graph"),
        (lambda g: g["nodes"][0].update(layer="0"), "layer is '0'"),
        (lambda g: g["nodes"][0].update(label=7), "label is 7"),
        (lambda g: g.pop("tokens"), "no sound graph"),
        (lambda g: g.update(tokens=[1, 2, 3]), "tokens has 1"),
        (lambda g: g.update(pruning={"node_threshold": 1}), "pruning has fields"),
        (lambda g: g["dtypes"].update(weight="int8"), "no sound graph"),
        (lambda g: g.update(groups={"a": ["nobody"]}), "no node has that id"),
        (lambda g: g.update(dropped=[1.0]), "no sound graph"),
        (lambda g: g["dropped"].__setitem__(0, None), "dropped has None"),
        (lambda g: g["pruning"]["cumulative"].pop(), "memory of the whole graph"),
        (lambda g: g["pruning"].update(node_share="1"), "pruning has node_share '1'"),
        (lambda g: g["pruning"].update(node_share=None), "pruning has node_share None"),
        (lambda g: g.update(metadata=[1]), "metadata is no object"),
    ],
)
def test_a_signed_file_that_is_no_graph_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = hand_graph().prune(1.0, 1.0).save(tmp_path / "g.json")
    resigned(path, change)
    with pytest.raises(CheckpointError, match=message):
        AttributionGraph.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no valid JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "no format"),
        ('{"metadata": {}, "nodes": []}', "read_viewer_json"),
        ('{"format": "saelab-graph", "version": 2}', "version 2; this saelab reads up to 1"),
        ('{"format": "saelab-graph", "version": "1"}', "version '1'"),
        ('{"format": "saelab-graph", "version": 1}', "SHA-256"),
        ('{"format": "saelab-graph", "version": NaN}', "NaN"),
        ('{"format": "saelab-graph", "format": "saelab-graph"}', "key is given twice"),
        ("[" * 100_000, "nested too deep"),
        ("1" * 5000, "no valid JSON"),
    ],
)
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        AttributionGraph.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.json"):
        with pytest.raises(CheckpointError, match="no such file"):
            AttributionGraph.load(path)


def test_the_largest_and_smallest_numbers_survive(tmp_path: Path) -> None:
    graph = random_graph(0)
    weight = graph.weight.clone()
    weight[:4] = torch.tensor([5e-324, 1.7e308, -1.7e308, math.pi], dtype=torch.float64)
    graph = replace(graph, weight=weight)
    loaded = AttributionGraph.load(graph.save(tmp_path / "g.json"))
    assert loaded.weight.equal(weight)
    assert bool(loaded.influence().isfinite().all())
