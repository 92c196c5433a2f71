"""`saelab trace`: from folders and a prompt to a graph on disk."""

from pathlib import Path

import pytest

from saelab.cli import main
from saelab.graphs import AttributionGraph
from tests.circuits.circuit_cases import cross_layer, transcoder


def _dictionary(folder: Path, layer: int, model: Path) -> str:
    import torch

    sae = transcoder(layer, dtype=torch.float32)
    sae.metadata["model"] = {"name": str(model)}
    sae.save(folder / f"layer_{layer}")
    return str(folder / f"layer_{layer}")


def test_a_prompt_becomes_a_graph_on_disk(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [_dictionary(tmp_path, layer, tiny_model_folder) for layer in (0, 2)]
    out = tmp_path / "owl.json"
    words = ["trace", *folders, "--prompt", "an owl", "--out", str(out), "--target", "a"]
    assert main([*words, "--max-latents", "9", "--device", "cpu", "--format", "dot"]) == 0
    graph = AttributionGraph.load(out)
    assert graph.closes(1e-4)
    assert int(graph.of_kind("latent").sum()) == 9
    assert [n.label for n in graph.nodes if n.kind == "logit"] == ["a"]
    said = capsys.readouterr().out
    assert "9 of " in said
    assert "Replacement score" in said
    assert str(out) in said
    assert (tmp_path / "owl.dot").exists()


def test_a_cross_layer_transcoder_is_found_in_its_folder(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    import torch

    cross_layer(dtype=torch.float32).save(tmp_path / "clt")
    out = tmp_path / "owl.json"
    words = ["trace", str(tmp_path), "--prompt", "owl", "--out", str(out), "--prune", "0.5"]
    assert main([*words, "--model", str(tiny_model_folder), "--device", "cpu"]) == 0
    assert AttributionGraph.load(out).pruning is not None


def test_a_folder_without_a_dictionary_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trace", str(tmp_path), "--prompt", "owl", "--out", str(tmp_path / "g.json")]
    assert main(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
