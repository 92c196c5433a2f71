"""The program runs on a tiny model whose tokens are words, with all its controls."""

from pathlib import Path

import pytest

from probes import ioi_yardstick
from saelab.activation_functions import TopK
from saelab.sae import SAE
from saelab.yardstick.ioi import PLACES, TEMPLATES, THINGS
from tests.tiny_models import tiny_llama, tiny_tokenizer

NAMES = ("Mary", "John", "Alice", "Paul", "Emma")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = set(NAMES)
    for template in TEMPLATES:
        for part in template:
            for place in PLACES:
                for thing in THINGS:
                    words |= set(part.format(place=place, thing=thing).split())
    folder = tmp_path_factory.mktemp("words")
    tiny_llama(d_vocab=2 + len(words)).save_pretrained(folder)
    tiny_tokenizer(sorted(words)).save_pretrained(folder)
    return folder


def test_the_yardstick_measures_three_ways_beside_its_controls(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAE(32, 64, TopK(6), hook="blocks.1.hook_resid_post").save(tmp_path / "sae")
    words = [str(tmp_path / "sae"), "--out", str(tmp_path / "out"), "--model", str(model_folder)]
    words += ["--prompts", "120", "--tested", "12", "--k", "2", "--k", "12", "--position", "END"]
    assert ioi_yardstick.main(words) == 0
    said = capsys.readouterr().out
    assert "Position END, 12 prompts, 5 names" in said
    table = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("  ")}
    for name in ("mean", "mse", "dictionary", "random", "nothing"):
        assert name in table
    assert "interpretation, random" in said
    assert ioi_yardstick.main(words) == 0
    assert said.endswith(capsys.readouterr().out)
    assert ioi_yardstick.main([*words, "--tested", "13"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_the_program_has_help_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        ioi_yardstick.main(["--help"])
    assert end.value.code == 0
    assert "Nanda 2024" in capsys.readouterr().out
