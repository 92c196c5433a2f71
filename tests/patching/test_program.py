"""The program of circuit baselines, end to end on a tiny model."""

from pathlib import Path

import pytest

from probes import circuit_baselines
from tests import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model") / "tiny"
    words = dict.fromkeys(
        [
            *circuit_baselines.NAMES,
            *circuit_baselines.PLACES,
            *circuit_baselines.THINGS,
            *(noun for pair in circuit_baselines.NOUNS for noun in pair),
            *circuit_baselines.NEAR,
            *["When", "The", "and", "went", "to", "the", ",", "gave", "a", "near", "is", "are"],
        ]
    )
    tiny_models.tiny_llama(d_vocab=len(words) + 2).save_pretrained(where)
    tiny_models.tiny_tokenizer(words).save_pretrained(where)
    return where


def test_the_program_prints_tables_and_writes_pages(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path / "out"), "--model", str(folder), "--pairs", "4"]
    words += ["--sizes", "2", "--draws", "1", "--acdc", "0.001", "--edges"]
    words += ["--behavior", "agreement"]
    assert circuit_baselines.main(words) == 0
    said = capsys.readouterr().out
    assert "agreement, 15 components" in said
    for name in ("exact", "EAP", "EAP-IG", "random circuit", "labels permuted", "reset network"):
        assert f"| {name} |" in said
    assert "ACDC on components at 0.001 nats keeps" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "circuits.html",
        "agreement_components.json",
        "agreement_edges.json",
    }


def test_prompts_differ_in_what_the_answer_depends_on(folder: Path) -> None:
    from saelab.models import load_model

    model = load_model(folder)
    for behavior in circuit_baselines.BEHAVIORS:
        pairs = circuit_baselines.pairs_of(model, behavior, 12)
        assert bool(((pairs.clean != pairs.patch).sum(1) == 1).all())
        assert bool((pairs.answers != pairs.others).all())
        assert len({tuple(row.tolist()) for row in pairs.clean}) == 12
