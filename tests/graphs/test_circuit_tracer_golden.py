"""What circuit-tracer itself makes of our files: `make golden` records it, this checks it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saelab import formats
from saelab.graphs.folding import fold
from saelab.graphs.influence import in_sums
from saelab.graphs.node import READ_OUTS
from saelab.graphs.viewer_nodes import viewer_ids
from tests.golden.circuit_tracer.write import FOLDER, KINDS, graphs, sets

GRAPHS = graphs()


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("slug", GRAPHS)
def test_the_files_it_read_are_those_we_write(slug: str, tmp_path: Path) -> None:
    written = read(GRAPHS[slug].export(tmp_path / f"{slug}.json", format="circuit-tracer"))
    kept = read(FOLDER / "graphs" / f"{slug}.json")
    for body in (written, kept):
        del body["metadata"]["info"]["generator"]["version"]
    assert written == kept


@pytest.mark.parametrize("slug", GRAPHS)
def test_its_page_keeps_every_node_and_link_and_adds_up_the_same(slug: str) -> None:
    page = read(FOLDER / "graphs" / f"{slug}.page.json")
    folded = fold(GRAPHS[slug])
    graph, ids = folded.graph, viewer_ids(folded, None)
    assert page["links"] == graph.n_edges
    nodes = {one["id"]: one for one in page["nodes"]}
    assert set(nodes) == set(ids.values())
    sizes = in_sums(graph.target, graph.weight.abs(), len(graph)).tolist()
    errors = graph.of_kind("error")[graph.source]
    missed = in_sums(graph.target, graph.weight.abs() * errors, len(graph)).tolist()
    for place, node in enumerate(graph.nodes):
        seen = nodes[ids[node.id]]
        assert seen["read"] == pytest.approx(sizes[place])
        assert seen["missed"] == pytest.approx(missed[place])
        assert seen["feeds"] == int((graph.source == place).sum())
        assert seen["error"] == (node.kind == "error")
        # Streams count from the embedding, 0; the read-outs are in the last.
        if node.kind in READ_OUTS:
            assert seen["logit"][1] == pytest.approx(node.probability, abs=5e-4)
        else:
            assert seen["stream"] == (0 if node.layer is None else node.layer + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_its_transcoders_compute_what_ours_do(kind: str, tmp_path: Path) -> None:
    layers = sets()[kind]
    formats.export(layers, tmp_path, "circuit-tracer")
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / kind / path.name).read_bytes()
    expected = load_file(FOLDER / kind / "expected.safetensors")
    for n, sae in enumerate(layers):
        x = expected["x"][n]
        codes = sae.encode(x)
        scale_in, scale_out = sae.normalization.scale_in, sae.normalization.scale_out
        assert scale_in != 1 and scale_out != 1  # the files hold the model's own units
        dense = codes.dense()
        assert int((dense != 0).sum()) > 24
        assert torch.equal(dense != 0, expected["latents"][n] != 0)
        assert torch.allclose(sae.decode(codes, x), expected["recons"][n], atol=1e-4, rtol=1e-4)
