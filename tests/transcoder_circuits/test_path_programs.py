"""The program that follows paths, and the one that plants codes, on something tiny."""

import re
from pathlib import Path

import pytest

from benchmarks import planted_codes
from probes import paths
from saelab.transcoder_circuits import PathConfig
from tests.circuits.circuit_cases import model_of, transcoder


def test_paths_of_a_prompt_are_told_in_words() -> None:
    saes = {str(layer): transcoder(layer) for layer in range(3)}
    config = PathConfig(branches=40, per_step=40, depth=2)
    lines = paths.measured(model_of("llama"), saes, "owl", "an owl", ("a", "b"), config)
    assert lines[0] == "owl: 'an owl', 'a' minus 'b'"
    numbers = [float(found) for found in re.findall(r"[+-]\d+\.\d\d", lines[1])]
    assert numbers[0] == pytest.approx(sum(numbers[1:]), abs=0.04)  # rounded to two digits each
    assert float(lines[1].rpartition(" ")[2]) < 1e-6
    assert re.fullmatch(r"  80 paths, \d+ add and \d+ take away; \d+ s", lines[2])
    assert all(" < " in line for line in lines[3:6])
    assert re.match(r"  head \d of layer \d looks at ", lines[-1])


def test_a_missing_set_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paths.main([str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    with pytest.raises(SystemExit):
        paths.main(["--help"])
    assert "Dunefsky et al. 2024" in capsys.readouterr().out


def test_planted_codes_print_a_line_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert planted_codes.main(["--seeds", "1", "--epochs", "2", "--permutations", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert lines[1].split()[:3] == ["loud", "5+5", "frequency"]
