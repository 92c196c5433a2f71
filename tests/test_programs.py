"""Every recipe runs end to end, and is a program with help."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from saelab import SAE, ActivationStore, tokens
from saelab.harvesting import harvest
from saelab.models import load_model
from trainers import topk

PAIRED = ("cross_layer_transcoder", "crosscoder", "skip_transcoder", "transcoder", "transcoder_set")
"""Programs that read several hook points: tests/test_transcoder_programs.py."""
RECIPES = sorted(
    path.stem
    for path in (Path(__file__).parent.parent / "trainers").glob("*.py")
    if path.stem not in ("__init__", "finetune", "yapo", *PAIRED)  # these have tests of their own
)
SPARSITY = {
    "group_bias": ["--buffer-tokens", "1024", "--lowest", "0.01", "--groups", "4"],
    "top_afa": [],
    "relu_l1_april2024": ["--l1", "1"],
    "relu_l1_2023": ["--l1", "1"],
    "p_annealing": ["--l1", "1"],
    "gated": ["--l1", "1"],
    "jumprelu_tanh": ["--l0", "0.5"],
}
"""Flags of the recipes that do not ask for k latents."""
FREE = {"codebook", "jumprelu_tanh", "relu_l1_april2024"}
"""Recipes whose decoder directions have any length."""


@pytest.fixture(scope="session")
def store_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path
) -> Path:
    folder = tmp_path_factory.mktemp("programs") / "acts"
    model = load_model(tiny_model_folder)
    text = tokens.from_text(model, tiny_text_file, length=32)
    harvest(model, text, ["blocks.1.hook_resid_post", "blocks.1.hook_resid_post.grad"], folder)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_a_dictionary(
    name: str, store_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(store_folder), str(tmp_path / "run"), "--d-sae", "64", "--tokens", "8192"]
    words += ["--batch-size", "512", *SPARSITY.get(name, ["--k", "4"])]
    assert importlib.import_module(f"trainers.{name}").main(words) == 0
    assert "8,192 tokens" in capsys.readouterr().out
    sae = SAE.load(tmp_path / "run" / "sae")
    x = ActivationStore.open(store_folder).sample(2000)
    assert (sae.d_in, sae.d_sae) == (32, 64)
    assert (x - sae(x)).square().sum() < 0.8 * (x - x.mean(0)).square().sum()
    lengths = sae.W_dec.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(64), atol=1e-5) == (name not in FREE)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_help_with_the_paper_and_every_flag(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"trainers.{name}").main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert f"usage: python -m trainers.{name}" in said
    assert re.search(r"[A-Z]\w+ 20\d\d, ", said), "no paper"
    assert "--seed" in said


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_holds_no_algorithm(name: str) -> None:
    source = (Path(__file__).parent.parent / "trainers" / f"{name}.py").read_text()
    assert len(source.splitlines()) < 100
    assert "import torch" not in source


def test_a_recipes_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert topk.main([str(tmp_path / "nowhere"), str(tmp_path / "run")]) == 2
    assert topk.main([str(tmp_path), str(tmp_path / "run"), "--kk", "3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no flag --kk. Did you mean --k?" in lines[1]
