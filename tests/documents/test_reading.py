"""Texts through a tiny model: batches, passages, interruption, and a corpus that changed."""

from pathlib import Path

import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.documents import DocumentCodes, DocumentConfig, read_documents
from saelab.documents import reading as reading_module
from saelab.errors import CheckpointError, ConfigError, DataError, Interrupted
from saelab.models import LanguageModel
from saelab.sae import SAE
from tests.tiny_models import sentences, tiny_language_model

HOOK = "blocks.1.hook_resid_post"
SHORT = DocumentConfig(length=24, least_tokens=2, rows_per_batch=3, rows_per_shard=8)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model()


@pytest.fixture(scope="module")
def sae() -> SAE:
    return SAE(32, 64, AbsTopK(4), hook=HOOK, seed=3)


def _same(a: DocumentCodes, b: DocumentCodes) -> None:
    assert torch.equal(a.ends, b.ends) and torch.equal(a.offsets, b.offsets)
    assert torch.equal(a.counts, b.counts) and torch.equal(a.places, b.places)
    assert torch.allclose(a.peaks, b.peaks, atol=1e-4)
    assert torch.allclose(a.totals, b.totals, atol=1e-4)
    assert list(a.names) == list(b.names) and torch.equal(a.groups, b.groups)


def test_documents_are_the_codes_of_their_tokens(model: LanguageModel, sae: SAE) -> None:
    texts = list(sentences(3))
    with pytest.raises(ConfigError):  # the tiny model reads 128 tokens at most
        read_documents(model, sae, ["x" * 200], config=DocumentConfig(length=200))
    config = DocumentConfig(length=60, max_rows=1, outlier_factor=None)
    found = read_documents(model, sae, texts, config=config)
    for i, text in enumerate(texts):
        ids = torch.tensor([[0, *model.encode(text)[:60]]])
        x = model.activations(ids, [HOOK])[HOOK][0, 1:]
        own = DocumentCodes.of_tokens(sae.encode(x), torch.zeros(60).long(), signed=True)
        assert torch.equal(found.rows(torch.tensor([i])).ends, own.ends)
        assert torch.allclose(found.rows(torch.tensor([i])).peaks, own.peaks, atol=1e-4)
        assert found.texts is not None and found.texts.text(i) == text[:60]
        strongest = int(own.peaks.argmax())
        snippet = found.snippet(i, int(own.ends[strongest]), around=0)
        assert snippet is not None and snippet.token == text[int(own.places[strongest])]


def test_documents_do_not_depend_on_batches_or_shards(model: LanguageModel, sae: SAE) -> None:
    texts = list(sentences(6))
    found = [
        read_documents(model, sae, texts, config=config)
        for config in (
            DocumentConfig(length=24, rows_per_batch=1, outlier_factor=None),
            DocumentConfig(length=24, rows_per_batch=16, outlier_factor=None),
            DocumentConfig(length=24, rows_per_batch=5, rows_per_shard=6, outlier_factor=None),
        )
    ]
    _same(found[0], found[1])
    _same(found[0], found[2])


def test_passages_know_their_text_and_short_ones_are_left_out(
    model: LanguageModel, sae: SAE
) -> None:
    texts = ["a" * 50, "bb", "c" * 24]
    config = DocumentConfig(unit="passage", length=24, least_tokens=5, outlier_factor=None)
    found = read_documents(model, sae, texts, config=config)
    assert list(found.names) == ["text 0 #1", "text 0 #2", "text 2 #1"]  # 2 and 2 letters are left
    assert found.groups.tolist() == [0, 0, 2] and found.n_tokens.tolist() == [24, 24, 24]
    assert found.texts is not None and found.texts.text(2) == "c" * 24
    limited = read_documents(
        model, sae, texts, config=DocumentConfig(unit="passage", length=24, max_documents=1)
    )
    assert list(limited.names) == ["text 0 #1"]
    with pytest.raises(DataError, match="no document"):
        read_documents(model, sae, ["bb", ""], config=config)


def test_a_stopped_reading_goes_on_to_the_same_documents(
    model: LanguageModel, sae: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = list(sentences(8))
    whole = read_documents(model, sae, texts, tmp_path / "whole", config=SHORT)
    real, calls = reading_module.write_shard, []

    def stopping(*words: object) -> object:
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(reading_module, "write_shard", stopping)
    with pytest.raises(Interrupted, match="go on"):
        read_documents(model, sae, texts, tmp_path / "parts", config=SHORT)
    monkeypatch.setattr(reading_module, "write_shard", real)
    again = read_documents(model, sae, texts, tmp_path / "parts", config=SHORT)
    _same(whole, again)
    assert torch.equal(whole.peaks, again.peaks)
    names = {p.name for p in (tmp_path / "parts").glob("0*")}
    assert len(names) >= 4
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    opened = read_documents(model, sae, texts, tmp_path / "parts", config=SHORT)  # nothing to do
    assert torch.equal(opened.peaks, whole.peaks)


def test_another_text_or_dictionary_is_not_continued(
    model: LanguageModel, sae: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = list(sentences(8))
    real, calls = reading_module.write_shard, []

    def stopping(*words: object) -> object:
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(reading_module, "write_shard", stopping)
    with pytest.raises(Interrupted):
        read_documents(model, sae, texts, tmp_path, config=SHORT)
    monkeypatch.setattr(reading_module, "write_shard", real)
    changed = ["Something else altogether, and quite long too.", *texts[1:]]
    with pytest.raises(CheckpointError, match="is not what shard 0 was made of"):
        read_documents(model, sae, changed, tmp_path, config=SHORT)
    with pytest.raises(CheckpointError, match="another dictionary"):
        read_documents(model, SAE(32, 64, TopK(4), hook=HOOK), texts, tmp_path, config=SHORT)
    with pytest.raises(CheckpointError, match="another config"):
        read_documents(model, sae, texts, tmp_path, config=DocumentConfig())


def test_turning_latents_of_the_dictionary_around_swaps_their_ends(
    model: LanguageModel, sae: SAE
) -> None:
    flip = torch.ones(64)
    flip[::3] = -1
    other = SAE(32, 64, AbsTopK(4), hook=HOOK)
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc * flip)
        other.W_dec.copy_(sae.W_dec * flip[:, None])
        other.b_dec.copy_(sae.b_dec)
    texts = list(sentences(3))
    before = read_documents(model, sae, texts, config=SHORT).signed("peak").dense()
    after = read_documents(model, other, texts, config=SHORT).signed("peak").dense()
    assert torch.allclose(after, before * flip, atol=1e-5)
    assert before.abs().max() > 0


def test_settings_that_cannot_work_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="length=0"):
        DocumentConfig(length=0)
    with pytest.raises(ConfigError, match="max_rows=0"):
        DocumentConfig(max_rows=0)
    with pytest.raises(ConfigError, match="hook point"):
        read_documents(model, SAE(32, 64), ["a text"])
