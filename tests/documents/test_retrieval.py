"""The inverted index is the dense product, and a property finds the documents that have it."""

import pytest
import torch

from saelab.documents import DocumentCodes, DocumentSearch, InvertedIndex, typical
from saelab.errors import ConfigError, ShapeError
from saelab.sparse_codes import SparseCodes
from tests.documents.planted import documents, signed_tokens, turned


def _integers(n: int, width: int, seed: int, density: float = 0.2) -> torch.Tensor:
    """Signed whole numbers: their products have no rounding, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (n, width), generator=generator).float()
    return x * (torch.rand(n, width, generator=generator) < density)


@pytest.mark.parametrize("density", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("n", [1, 3, 10, 200])
def test_the_index_is_the_dense_product_ties_and_all(n: int, density: float) -> None:
    x, queries = _integers(120, 40, 0, density), _integers(25, 40, 1, density)
    queries[4] = 0.0  # a query of nothing
    index = InvertedIndex.of(SparseCodes.from_dense(x))
    hits = index.search(SparseCodes.from_dense(queries), n)
    scores = queries @ x.T
    for row in range(25):
        order = sorted(range(120), key=lambda d: (-scores[row, d].item(), d))
        wanted = [d for d in order if scores[row, d] > 0][:n]
        assert hits.documents[row].tolist() == wanted + [-1] * (n - len(wanted))
        assert hits.scores[row, : len(wanted)].tolist() == scores[row, wanted].tolist()
    assert index.longest == int((x != 0).sum(0).max())


def test_a_query_does_not_depend_on_the_others() -> None:
    x, queries = _integers(50, 20, 2), SparseCodes.from_dense(_integers(8, 20, 3))
    index = InvertedIndex.of(SparseCodes.from_dense(x))
    whole = index.search(queries, 5)
    for i in range(8):
        alone = index.search(queries[i], 5)
        assert torch.equal(alone.documents[0], whole.documents[i])
        assert torch.equal(alone.scores[0], whole.scores[i])


def test_what_cannot_be_searched_is_refused() -> None:
    index = InvertedIndex.of(SparseCodes.from_dense(_integers(5, 6, 0)))
    with pytest.raises(ShapeError, match="width 7"):
        index.search(SparseCodes.from_dense(torch.ones(1, 7)))
    with pytest.raises(ConfigError, match="n=0"):
        index.search(SparseCodes.from_dense(torch.ones(1, 6)), 0)


def test_a_planted_property_is_found_before_everything_else() -> None:
    chances = torch.full((100, 20), 0.3)
    relevant = torch.arange(100) % 5 == 0
    chances[:, 3] = relevant.float()
    chances[:, 8] = 0.5
    chances[relevant, 8] = 0.0
    found = DocumentSearch(documents(chances)).find({(3, 1): 1.0, (8, 1): -1.0}, 30)
    assert sorted(one.document for one in found) == list(range(0, 100, 5))  # precision is 1
    assert all(one.parts[0].latent == 3 and one.parts[0].added > 0 for one in found)


def test_a_negative_weight_takes_documents_down() -> None:
    x = torch.tensor([[4.0, 0.0], [4.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    whole = DocumentCodes.of_tokens(SparseCodes.from_dense(x), torch.arange(4), signed=False)
    search = DocumentSearch(whole)
    found = search.find({(0, 1): 1.0, (1, 1): -0.75}, 4)
    # 4 / 4; 2 / 4; 4 / 4 - .75 * 2 / 2; the last has nothing that was asked for
    assert [(one.document, one.score) for one in found] == [(0, 1.0), (2, 0.5), (1, 0.25)]
    assert [part.added for part in found[2].parts] == [1.0, -0.75]
    with pytest.raises(ConfigError, match="no positive weight"):
        search.find({(1, 1): -1.0})
    with pytest.raises(ConfigError, match="no end"):
        search.find({(1, -1): 1.0})


@pytest.mark.parametrize("how", ["peak", "mean", "share"])
def test_the_scale_of_a_latent_does_not_decide(how: str) -> None:
    codes = signed_tokens()
    loud = SparseCodes(
        codes.offsets, codes.indices,
        codes.values * torch.where(codes.indices == 2, 64.0, 1.0), 7,
    )  # fmt: skip
    document, wanted = torch.arange(20).repeat_interleave(3), {(2, 1): 1.0, (5, -1): 0.7}
    answers = [
        DocumentSearch(DocumentCodes.of_tokens(c, document, signed=True), how).find(wanted)  # type: ignore[arg-type]
        for c in (codes, loud)
    ]
    assert [(a.document, a.score) for a in answers[0]] == [
        (b.document, b.score) for b in answers[1]
    ]


def test_turning_a_latent_around_asks_for_its_other_end() -> None:
    codes, document = signed_tokens(), torch.arange(20).repeat_interleave(3)
    before = DocumentSearch(DocumentCodes.of_tokens(codes, document, signed=True))
    after = DocumentSearch(DocumentCodes.of_tokens(turned(codes, [2]), document, signed=True))
    one = before.find({(2, 1): 1.0, (4, 1): -0.3})
    other = after.find({(2, -1): 1.0, (4, 1): -0.3})
    assert [(a.document, a.score) for a in one] == [(b.document, b.score) for b in other]


def test_documents_like_one_are_those_of_its_kind() -> None:
    chances = torch.full((40, 30), 0.02)
    chances[:20, :8], chances[20:, 8:16] = 0.8, 0.8
    search = DocumentSearch(documents(chances))
    for document in (3, 33):
        like = search.like(document, 10)
        assert all((other < 20) == (document < 20) and other != document for other, _ in like)
        assert all(0 < score <= 1.0001 for _, score in like)


def test_examples_become_a_query() -> None:
    chances = torch.full((60, 20), 0.1)
    chances[:10, 4] = chances[:10, 9] = 1.0
    whole = documents(chances)
    examples = torch.arange(60) < 3
    wanted = typical(whole, examples, 2)
    assert set(wanted) == {(4, 1), (9, 1)}
    found = DocumentSearch(whole, "share").find(wanted, 10)
    assert {one.document for one in found} == set(range(10))
    with pytest.raises(ConfigError, match="a query needs both"):
        typical(whole, torch.zeros(60, dtype=torch.bool))
