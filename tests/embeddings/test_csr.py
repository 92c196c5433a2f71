"""The benchmark runs end to end on a tiny encoder and prints its tables."""

from pathlib import Path

import pytest
import torch

from benchmarks import csr


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertModel

    from tests.tiny_models import tiny_tokenizer

    config = BertConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_tables_are_printed(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.csv"
    rows = [f"{'zyx'[i % 3] * (3 + i % 7)} {i},{'zyx'[i % 3]}\n" for i in range(90)]
    path.write_text("prompt,target\n" + "".join(rows) + rows[0])  # one text twice
    words = ["--data", str(path), "--embedder", str(encoder), "--k", "2", "--seeds", "1"]
    assert csr.main([*words, "--steps", "3", "--documents", "300", "--queries", "4"]) == 0
    said = capsys.readouterr().out
    assert "90 texts of 90 sources, 3 labels" in said
    for name in ("truncated", "PCA", "prefix map, labels", "CSR ", "CSRv2, labels"):
        (line,) = [line for line in said.splitlines() if line.startswith(name)]
        assert 0 <= float(line.removeprefix(name).split()[0]) <= 1
    assert "posting lists, k = 2" in said and "300 documents" in said


def test_a_source_is_on_one_side_only() -> None:
    sources = [str(i // 4) for i in range(80)]
    for seed in range(3):
        test = csr.divided(sources, seed)
        assert int(test.sum()) == 24
        assert all(len(set(test[4 * i : 4 * i + 4].tolist())) == 1 for i in range(20))
    assert not torch.equal(csr.divided(sources, 0), csr.divided(sources, 1))


def test_texts_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert csr.main(["--data", "nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        csr.main(["--help"])
    assert "Wen et al. 2025" in capsys.readouterr().out
