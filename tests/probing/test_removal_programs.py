"""The programs that remove concepts and learn pushes run on a tiny model, and continue."""

from pathlib import Path

import pytest

from probes import concept_removal, learned_steering
from saelab.activation_functions import TopK
from saelab.sae import SAE

BINARY = "Binary Classification"


@pytest.fixture
def dictionary(tmp_path: Path) -> str:
    SAE(32, 64, TopK(6), hook="blocks.1.hook_resid_post").save(tmp_path / "sae")
    return str(tmp_path / "sae")


@pytest.fixture
def package(tmp_path: Path) -> str:
    """Data sets in the layout of sae-probes, with texts that bytes can tell apart."""
    import pyarrow as pa

    subjects = dict(zip(concept_removal.SUBJECTS, "xyzq", strict=True))
    tables = {
        name: [(f"{letter * 3} news {i} {letter}", 1) for i in range(24)]
        + [(f"other {name} {i}", 0) for i in range(24)]
        for name, letter in subjects.items()
    }
    people = [(f"{'stage' if i % 2 else 'mine'} {i} {'he he' if i % 4 < 2 else 'she'}", i)
              for i in range(80)]  # fmt: skip
    tables[concept_removal.WANTED] = [(text, i % 2) for text, i in people]
    tables[concept_removal.SPURIOUS] = [(text, int(i % 4 < 2)) for text, i in people]
    tables[learned_steering.DATA] = [
        (f"{'good' if i % 2 else 'dull'} film number {i}", i % 2) for i in range(80)
    ]
    data = tmp_path / "sae_probes" / "data"
    data.mkdir(parents=True)
    index = "Dataset Tag,Dataset save name,Data type\n"
    for name, rows in tables.items():
        index += f"{name},{name}.csv,{BINARY}\n"
        content = "prompt,target\n" + "".join(f"{text},{label}\n" for text, label in rows)
        with pa.output_stream(data / f"{name}.csv.zst", compression="zstd") as stream:
            stream.write(content.encode())
    with pa.output_stream(data / "probing_datasets_MASTER.csv.zst", compression="zstd") as stream:
        stream.write(index.encode())
    return str(tmp_path)


def test_concepts_are_removed_beside_controls_and_a_finished_measurement_is_kept(
    dictionary: str,
    package: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [dictionary, "--out", str(tmp_path / "out"), "--data-folder", package]
    words += ["--model", str(tiny_model_folder), "--texts", "20", "--max-length", "12"]
    words += ["--measure", "tpp", "--measure", "scr"]
    assert concept_removal.main(words) == 0
    said = capsys.readouterr().out
    assert "TPP: 80 headlines of four subjects" in said and "random" in said
    assert "SCR: 80 texts about people; cells [20, 20, 20, 20]" in said
    assert "gender without actor" in said
    when = (tmp_path / "out" / "tpp.json").stat().st_mtime_ns
    assert concept_removal.main(words) == 0
    assert capsys.readouterr().out == said
    assert (tmp_path / "out" / "tpp.json").stat().st_mtime_ns == when
    assert concept_removal.main([*words, "--seed", "3"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert concept_removal.main([*words[:-4], "--measure", "absorption"]) == 2
    assert "no token that is a space and a word" in capsys.readouterr().err


def test_learned_pushes_are_compared_over_seeds_on_pairs_not_taught(
    dictionary: str,
    package: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [dictionary, "--out", str(tmp_path / "out"), "--data-folder", package]
    words += ["--model", str(tiny_model_folder), "--steps", "6", "--seeds", "2", "--pairs", "6"]
    words += ["--held-out", "4", "--answer-tokens", "8", "--rate", "0.3"]
    assert learned_steering.main(words) == 0
    said = capsys.readouterr().out
    assert "6 pairs, 6 updates of 2, 2 seeds; 4 pairs held out" in said
    for line in ("YaPO at 0.3", "BiPO at 0.3", "means, as long as BiPO at 0.3"):
        assert line in said
    assert "BiPO at 0.3" in (tmp_path / "out" / "learned.html").read_text()
    assert learned_steering.main(words) == 0
    assert capsys.readouterr().out == said
    assert learned_steering.main([*words, "--held-out", "99"]) == 2


@pytest.mark.parametrize("program", [concept_removal, learned_steering])
def test_a_program_has_help_with_its_sources(
    program: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "et al" in said and "sae-probes" in said
