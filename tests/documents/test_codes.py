"""Documents as rows of ends: pooled by hand, turned around, cut, joined, saved and damaged."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from saelab.documents import (
    DocumentCodes,
    DocumentPooling,
    Texts,
    cat,
    open_documents,
    save_documents,
)
from saelab.errors import CheckpointError, ConfigError, DataError, ShapeError
from saelab.sparse_codes import SparseCodes
from tests.documents.planted import signed_tokens, turned

DOCUMENT = torch.arange(12).repeat_interleave(5)


def _documents(codes: SparseCodes | None = None) -> DocumentCodes:
    codes = signed_tokens() if codes is None else codes
    return DocumentCodes.of_tokens(codes, DOCUMENT, signed=True)


@pytest.mark.parametrize("how", get_args(DocumentPooling))
def test_pooling_is_what_a_loop_over_tokens_gives(how: DocumentPooling) -> None:
    x = signed_tokens().dense()
    pooled = _documents().pooled(how).dense()
    for document, part in enumerate(x.split(5)):
        sides = torch.cat([part.clamp_min(0), (-part).clamp_min(0)], 1)
        wanted = {
            "peak": sides.amax(0),
            "mean": sides.mean(0),
            "share": (sides > 0).float().mean(0),
        }
        assert torch.allclose(pooled[document], wanted[how])


def test_the_signed_peak_is_the_value_of_largest_size() -> None:
    x, signed = signed_tokens().dense(), _documents().signed("peak").dense()
    for document, part in enumerate(x.split(5)):
        assert torch.equal(signed[document], part.gather(0, part.abs().argmax(0)[None])[0])
    mean = _documents().signed("mean").dense()
    assert torch.allclose(mean, torch.stack([part.mean(0) for part in x.split(5)]), atol=1e-6)


def test_the_place_is_the_first_token_of_the_peak() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, -3.0], [2.0, 1.0]])
    found = DocumentCodes.of_tokens(SparseCodes.from_dense(x), torch.zeros(3).long(), signed=True)
    assert found.ends.tolist() == [0, 1, 3]
    assert found.places.tolist() == [1, 0, 1]
    assert found.counts.tolist() == [2, 2, 1]
    assert found.totals.tolist() == [4.0, 2.0, 3.0]


@pytest.mark.parametrize("how", get_args(DocumentPooling))
def test_turning_a_latent_around_swaps_its_ends_and_nothing_else(how: DocumentPooling) -> None:
    codes, d_sae = signed_tokens(), 7
    before = _documents(codes).pooled(how).dense()
    after = _documents(turned(codes, [2, 5])).pooled(how).dense()
    order = list(range(2 * d_sae))
    for latent in (2, 5):
        order[latent], order[latent + d_sae] = order[latent + d_sae], order[latent]
    assert torch.equal(after, before[:, order])


def test_a_document_does_not_depend_on_the_others() -> None:
    codes = signed_tokens()
    whole = _documents(codes)
    for i in range(12):
        alone = DocumentCodes.of_tokens(
            codes[5 * i : 5 * i + 5], torch.zeros(5).long(), signed=True
        )
        assert torch.equal(alone.pooled("mean").dense(), whole.pooled("mean")[i].dense())
    assert torch.equal(cat([whole.rows(torch.arange(4)), whole.rows(torch.arange(4, 12))]).peaks,
                       whole.peaks)  # fmt: skip


def test_rows_come_in_the_order_asked_for_with_their_words() -> None:
    documents = DocumentCodes.of_tokens(
        signed_tokens(), DOCUMENT, signed=True, names=[f"n{i}" for i in range(12)]
    )
    some = documents.rows(torch.tensor([7, 2]))
    assert some.name(0) == "n7" and len(some) == 2
    assert torch.equal(some.pooled("peak").dense(), documents.pooled("peak").dense()[[7, 2]])
    mask = torch.arange(12) % 3 == 0
    assert documents.rows(mask).names == ["n0", "n3", "n6", "n9"]
    with pytest.raises(ShapeError, match="mask of 2"):
        documents.rows(torch.tensor([True, False]))
    with pytest.raises(DataError, match="0 to 11"):
        documents.rows(torch.tensor([12]))


def test_a_snippet_shows_the_words_around_the_peak() -> None:
    x = torch.tensor([[0.0], [0.0], [-2.0], [1.0]])
    found = DocumentCodes.of_tokens(SparseCodes.from_dense(x), torch.zeros(4).long(), signed=True)
    words = Texts.of_strings([["The", " cat", " <b>", " sat"]])
    shown = _with_texts(found, words)
    snippet = shown.snippet(0, shown.end(0, -1), around=1)
    assert snippet is not None and (snippet.before, snippet.token, snippet.after) == (
        " cat", " <b>", " sat",
    )  # fmt: skip
    assert found.snippet(0, 0) is None  # no text was kept
    assert shown.snippet(0, 0, around=0) is not None


def test_one_of_each_source_is_drawn() -> None:
    documents = DocumentCodes.of_tokens(
        signed_tokens(), DOCUMENT, signed=True, groups=torch.arange(12) // 4
    )
    drawn = [documents.one_per_group(seed) for seed in range(6)]
    assert all(one.groups.tolist() == [0, 1, 2] for one in drawn)
    assert len({tuple(one.peaks.tolist()) for one in drawn}) > 1


def test_sources_of_two_collections_stay_apart() -> None:
    a = DocumentCodes.of_tokens(
        signed_tokens(), DOCUMENT, signed=True, groups=torch.arange(12) // 4
    )
    assert cat([a, a]).groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4
    assert cat([a, a], same_sources=True).groups.unique().tolist() == [0, 1, 2]


def test_what_cannot_be_documents_is_refused() -> None:
    codes = signed_tokens()
    with pytest.raises(DataError, match="unsigned"):
        DocumentCodes.of_tokens(codes, DOCUMENT, signed=False)
    with pytest.raises(DataError, match="document by document"):
        DocumentCodes.of_tokens(codes, DOCUMENT.flip(0), signed=True)
    with pytest.raises(DataError, match="different dictionaries"):
        cat([_documents(), DocumentCodes.of_tokens(
            SparseCodes.from_dense(torch.ones(1, 3)), torch.tensor([0]), signed=True)])  # fmt: skip
    with pytest.raises(ConfigError, match="latents are 0 to 6"):
        _documents().end(7)


def test_what_is_saved_is_what_is_opened(tmp_path: Path) -> None:
    words = Texts.of_strings([[f" w{i}{j}" for j in range(5)] for i in range(12)])
    documents = _with_texts(_documents(), words, [f"n{i}" for i in range(12)])
    save_documents(documents, tmp_path / "docs")
    found = open_documents(tmp_path / "docs")
    for name in ("n_tokens", "offsets", "ends", "peaks", "totals", "counts", "places", "groups"):
        assert torch.equal(getattr(found, name), getattr(documents, name)), name
    assert list(found.names) == list(documents.names) and found.d_sae == 7
    assert found.texts is not None
    assert [found.texts.text(i) for i in range(12)] == [words.text(i) for i in range(12)]
    with pytest.raises(CheckpointError, match="not empty"):
        save_documents(documents, tmp_path / "docs")


@pytest.mark.parametrize("file", ["00000.safetensors", "00000.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, damage: str) -> None:
    save_documents(_documents(), tmp_path)
    path = tmp_path / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        altered = bytearray(data)
        altered[data.index(b'"') + 1] ^= 1  # in a name, so that JSON is JSON still
        path.write_bytes(bytes(altered))
    with pytest.raises(CheckpointError, match=file.partition(".")[0]):
        open_documents(tmp_path)


def _with_texts(
    documents: DocumentCodes, texts: Texts, names: list[str] | None = None
) -> DocumentCodes:
    from dataclasses import replace

    return replace(documents, texts=texts, names=names or ())
