"""Two sets of documents: planted differences are found, and what is no difference is not."""

import numpy as np
import pytest
import torch

from saelab.documents import CompareConfig, DocumentCodes, compare, compare_parts, halves
from saelab.documents.strata import length_strata
from saelab.errors import ConfigError, DataError
from tests.documents.planted import documents, signed_tokens, turned

WIDTH = 100


def _chances(n: int, seed: int = 0) -> torch.Tensor:
    """Every latent in its own share of documents, from rare to frequent."""
    generator = torch.Generator().manual_seed(100 + seed)
    return (torch.rand(WIDTH, generator=generator) ** 2 * 0.6).expand(n, WIDTH).clone()


def test_two_halves_of_one_set_differ_in_nothing() -> None:
    false = 0
    for seed in range(20):
        whole = documents(_chances(160, seed), seed=seed)
        false += bool(compare_parts(whole, halves(whole, seed)).discoveries())
    assert false <= 1  # at q = 0.05, in at least 95 % of seeds none


def test_a_planted_latent_comes_first_with_its_share() -> None:
    base = _chances(300)
    base[:, 17] = 0.0
    with_it = base.clone()
    with_it[:, 17] = 0.1
    found = compare(documents(with_it, seed=1), documents(base, seed=2))
    (first, *rest) = found.discoveries()
    assert (first.latent, first.sign) == (17, 1) and not rest
    assert first.difference == pytest.approx(0.1, abs=0.04)
    assert first.share_b == 0.0 and first.odds_ratio > 10
    assert found.n_tested <= WIDTH and not found.grouped


def test_a_weak_difference_is_real_and_not_told() -> None:
    base = _chances(2000)
    base[:, 5] = 0.002
    other = base.clone()
    other[:, 5] = 0.022
    a, b = documents(base, seed=1, lengths=3), documents(other, seed=2, lengths=3)
    assert 5 not in {one.latent for one in compare(a, b).discoveries()}
    told = compare(a, b, CompareConfig(least_difference=0.0)).discoveries()
    (found,) = [one for one in told if one.latent == 5]
    assert -0.03 < found.difference < 0 and found.q < 0.01


def test_length_alone_is_no_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(20, 60, (240,), generator=generator)
    short = torch.randint(10, 50, (240,), generator=generator)
    rate = 0.02  # a latent fires on a token with this chance, in both sets

    def of(lengths: torch.Tensor, seed: int) -> DocumentCodes:
        chances = (1 - (1 - rate) ** lengths.float())[:, None].expand(240, WIDTH)
        return documents(chances, lengths, seed)

    a, b = of(long, 1), of(short, 2)
    without = compare(a, b, CompareConfig(n_strata=1)).discoveries()
    within = compare(a, b, CompareConfig(n_strata=8)).discoveries()
    assert len(without) > 20  # every latent is in more of the longer documents
    assert len(within) <= 2


def test_sets_without_a_common_length_cannot_be_compared() -> None:
    chances = _chances(50)
    with pytest.raises(DataError, match="no document of like length"):
        compare(documents(chances, 10), documents(chances, 80))


def test_passages_of_one_text_count_as_one_text() -> None:
    generator = torch.Generator().manual_seed(4)
    per_text = torch.rand(24, WIDTH, generator=generator) ** 3  # each text has its own subjects
    groups = torch.arange(24).repeat_interleave(20)
    whole = documents(per_text[groups], seed=5, groups=groups)
    in_a = halves(whole, 1)
    compared = compare_parts(whole, in_a)
    assert compared.grouped and len(compared.discoveries()) == 0
    from dataclasses import replace

    naive = replace(whole, groups=torch.arange(len(whole)))
    assert len(compare_parts(naive, in_a).discoveries()) > 20
    per_text[torch.isin(torch.arange(24), groups[in_a].unique()), 3] = 0.9
    per_text[~torch.isin(torch.arange(24), groups[in_a].unique()), 3] = 0.1
    planted = documents(per_text[groups], seed=5, groups=groups)
    assert [one.latent for one in compare_parts(planted, in_a).discoveries()] == [3]


def test_halves_keep_texts_whole() -> None:
    groups = torch.arange(10).repeat_interleave(3)
    whole = documents(_chances(30), groups=groups)
    in_a = halves(whole, 0)
    assert int(in_a.sum()) == 15
    assert all(len(in_a[groups == g].unique()) == 1 for g in range(10))
    assert not torch.equal(in_a, halves(whole, 1))
    with pytest.raises(DataError, match="one source"):
        halves(documents(_chances(4), groups=torch.zeros(4).long()))


def test_turning_latents_around_turns_their_differences_around() -> None:
    codes, document = signed_tokens(n_tokens=240), torch.arange(60).repeat_interleave(4)
    in_a = torch.arange(60) < 30
    config = CompareConfig(least_documents=1)

    def compared(latents: list[int]) -> dict[tuple[int, int], tuple[float, float]]:
        found = DocumentCodes.of_tokens(turned(codes, latents), document, signed=True)
        comparison = compare_parts(found, in_a, config)
        return {(one.latent, one.sign): (one.difference, one.p) for one in comparison.largest(99)}

    before, after = compared([]), compared([1, 4])
    assert len(before) == 14
    for (latent, sign), value in before.items():
        assert after[latent, -sign if latent in (1, 4) else sign] == pytest.approx(value)


def test_the_order_of_documents_does_not_matter() -> None:
    whole = documents(_chances(80), torch.randint(5, 40, (80,)))
    in_a = torch.arange(80) % 2 == 0
    order = torch.randperm(80)
    one = compare_parts(whole, in_a).columns
    other = compare_parts(whole.rows(order), in_a[order]).columns
    for name in one:
        assert np.allclose(one[name], other[name], equal_nan=True), name


def test_exchanging_the_sets_changes_signs_only() -> None:
    a, b = documents(_chances(60), seed=1), documents(_chances(60), seed=2)
    one, other = compare(a, b).columns, compare(b, a).columns
    assert np.allclose(one["difference"], -other["difference"], equal_nan=True)
    assert np.allclose(one["odds_ratio"], 1 / other["odds_ratio"], equal_nan=True)
    assert np.allclose(one["q"], other["q"], equal_nan=True)


def test_examples_come_from_the_side_that_has_more() -> None:
    base = _chances(60)
    base[:30, 2], base[30:, 2] = 0.9, 0.05
    whole = documents(base, groups=torch.arange(60) // 2)
    in_a = torch.arange(60) < 30
    found = compare_parts(whole, in_a).at(2)
    told = compare_parts(whole, in_a).examples(found, 5)
    assert len(told) == 5 and all(document < 30 for document, _, _ in told)
    assert len({document // 2 for document, _, _ in told}) == 5
    peaks = [peak for _, peak, _ in told]
    assert peaks == sorted(peaks, reverse=True)


def test_equal_lengths_are_in_one_stratum() -> None:
    lengths = torch.tensor([3, 3, 3, 3, 3, 9, 9, 1])
    found = length_strata(lengths, 4)
    for length in (1, 3, 9):
        assert len(found[lengths == length].unique()) == 1
    assert length_strata(lengths, 1).tolist() == [0] * 8


def test_what_cannot_be_compared_is_refused() -> None:
    a = documents(_chances(10))
    with pytest.raises(DataError, match="each needs two"):
        compare(a, a.rows(torch.tensor([0])))
    with pytest.raises(DataError, match="1 sources"):
        compare(a, documents(_chances(10), groups=torch.zeros(10).long()))
    with pytest.raises(ConfigError, match="q=2"):
        CompareConfig(q=2.0)
