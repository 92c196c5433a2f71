"""The program finds the letters that one set has and the other has not, and nothing in halves."""

import json
import random
from pathlib import Path

import pytest

from probes import corpora_compared
from saelab.activation_functions import TopK
from saelab.sae import SAE


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Texts of random letters, those of kind z from the end of the alphabet."""
    draw = random.Random(0)
    lines = []
    for number in range(48):
        kind, alphabet = ("z", "qrstuvwxyz") if number % 2 else ("a", "abcdefghij")
        text = " ".join("".join(draw.choices(alphabet, k=4)) for _ in range(40))
        lines.append(json.dumps({"text": text, "kind": kind, "year": 1900 + number}))
    path = tmp_path / "letters.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_kinds_of_text_are_compared(
    letters: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAE(32, 96, TopK(3), hook="blocks.0.hook_resid_post").save(tmp_path / "sae")
    words = [str(tmp_path / "sae"), "--out", str(tmp_path / "out"), "--model",
             str(tiny_model_folder), "--a", f"{letters}:kind=z", "--b", f"{letters}:kind=a",
             "--length", "16", "--halvings", "3", "--top", "4"]  # fmt: skip
    assert corpora_compared.main(words) == 0
    said = capsys.readouterr().out
    assert "A = " in said and "48 passages of 24 texts" in said
    assert "A/A of A: discoveries in 0 of 3 halvings" in said
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first = found["differences"][0]
    assert abs(first["difference"]) > 0.8 and first["q"] < 0.01
    side = "qrstuvwxyz" if first["difference"] > 0 else "abcdefghij"
    assert first["examples"][0].split("‹")[1][0] in side + " ‹"
    assert corpora_compared.main(words) == 0  # opens what was read
    assert capsys.readouterr().out == said
    assert corpora_compared.main([*words, "--length", "20"]) == 2
    assert "another config" in capsys.readouterr().err


def test_a_range_of_years_is_a_set(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holds = corpora_compared.holds("year=1900..1910")
    assert [holds({"year": year}) for year in (1899, 1900, 1910, 1911)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert corpora_compared.main(["sae", "--out", "o", "--a", f"{letters}:kind"]) == 2
    with pytest.raises(SystemExit):
        corpora_compared.main(["--help"])
    assert "et al. 2025" in capsys.readouterr().out


@pytest.mark.parametrize("size", [10, 500])
def test_a_stretch_starts_with_a_word(size: int) -> None:
    text = " ".join(f"word{i}" for i in range(40))
    for seed in range(5):
        found = corpora_compared.stretch(text, size, random.Random(seed))
        assert found in text and len(found) <= size
        assert found.startswith("word")
