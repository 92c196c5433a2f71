"""The programs run end to end on a tiny model, say what they found, and continue."""

import json
from pathlib import Path

import pytest

from probes import neuron_roles, sparse_probing
from saelab.activation_functions import TopK
from saelab.sae import SAE


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    SAE(32, 64, TopK(4), hook="blocks.1.hook_resid_post").save(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Texts with many z, or none: easy for any model that sees bytes."""
    path = tmp_path / "zeds.csv"
    rows = [f"{'z' * (1 + i % 3)} {i} fizz zoo zigzag,yes\nno {i} cat on the mat,no\n"
            for i in range(60)]  # fmt: skip
    path.write_text("prompt,target\n" + "".join(rows))
    return path


def test_sparse_probing_says_what_it_found_and_continues(
    dictionary: Path,
    letters: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(dictionary), "--out", str(tmp_path / "out"), "--data", str(letters)]
    words += ["--model", str(tiny_model_folder), "--k", "1", "--k", "3", "--controls", "1"]
    assert sparse_probing.main(words) == 0
    said = capsys.readouterr().out
    for source, width in (("activations", 32), ("neurons", 48), ("latents", 64)):
        lines = [line for line in said.splitlines() if line.startswith(f"{'zeds':22}{source}")]
        assert [line.split()[2:4] for line in lines] == [
            ["1", str(width)], ["3", str(width)], ["all", str(width)]
        ]  # fmt: skip
    assert "zeds 84 + 36" in said
    file = tmp_path / "out" / "zeds.json"
    found = json.loads(file.read_text())
    best = {(row["source"], row["k"]): row["auroc"] for row in found["rows"]}
    assert best["activations", None] > 0.95
    when = file.stat().st_mtime_ns
    assert sparse_probing.main([*words[:-1], "1"]) == 0  # nothing is left to do
    assert capsys.readouterr().out == said
    assert file.stat().st_mtime_ns == when
    assert sparse_probing.main([*words, "--texts", "50"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_neuron_roles_counts_neurons_and_latents(
    dictionary: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", str(tiny_model_folder), "--text", str(tiny_text_file), "--length", "64"]
    words += ["--max-tokens", "4000", "--out", str(tmp_path / "roles.json")]
    assert neuron_roles.main(["--dictionary", str(dictionary), *words]) == 0
    said = capsys.readouterr().out
    assert "64 units of blocks.1.hook_resid_post" in said and "shuffled" in said
    found = json.loads((tmp_path / "roles.json").read_text())
    assert len(found["units"]) == 64
    assert neuron_roles.main(["--layer", "1", "--p", "5", *words]) == 0
    said = capsys.readouterr().out
    assert "At 5 % more perplexity" in said and "48 units of blocks.1.mlp.hook_post" in said
    assert neuron_roles.main([*words]) == 2
    assert "either --layer" in capsys.readouterr().err


@pytest.mark.parametrize("program", [sparse_probing, neuron_roles])
def test_a_program_has_help_with_its_sources(
    program: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "et al. 202" in said and "--seed" in said
