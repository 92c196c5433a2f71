"""Pairs of latents: planted ones are found, those of length and of chance are not."""

import numpy as np
import pytest
import torch

from saelab.documents import DocumentCodes, PairConfig, npmi, pairs_together
from saelab.errors import DataError
from tests.documents.planted import documents, signed_tokens, turned


def test_npmi_by_hand() -> None:
    # 4 of 16 together, 8 and 8 alone: log(.25 / .25) = 0; 8 of 8: 1; none: -1
    # 2 of 16 together, 2 and 4 alone: log(.125 / (.125 * .25)) / -log(.125) = log 4 / log 8 = 2/3
    found = npmi(np.array([4, 8, 0, 2]), np.array([8, 8, 8, 2]), np.array([8, 8, 8, 4]), 16)
    assert found == pytest.approx([0.0, 1.0, -1.0, 2 / 3])
    assert npmi(np.array([16]), np.array([16]), np.array([16]), 16)[0] == 1.0
    with pytest.raises(DataError, match="no document"):
        npmi(np.array([0]), np.array([0]), np.array([4]), 16)


def test_a_planted_rule_is_found_and_chance_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = (torch.rand(60, generator=generator) * 0.3 + 0.05).expand(400, 60).clone()
    first = torch.rand(400, generator=generator) < 0.15
    chances[:, 7] = first.float()
    chances[:, 31] = first.float()  # always with 7
    chances[:, 40] = (~first).float() * 0.4  # never with 7
    found = pairs_together(documents(chances), directions=torch.eye(60))
    pair = found.found[0]
    assert (pair.latent, pair.other) == (7, 31)
    assert pair.npmi == pytest.approx(1.0) and pair.cosine == 0.0 and pair.q < 1e-6
    assert pair.n_both == pair.n_one == pair.n_other
    assert len(found.found) <= 2 and found.null_found == 0
    assert not any({7, 40} == {one.latent, one.other} for one in found.found)


def test_noise_gives_no_pair() -> None:
    false = 0
    for seed in range(15):
        generator = torch.Generator().manual_seed(seed)
        chances = (torch.rand(80, generator=generator) * 0.4).expand(200, 80)
        false += bool(pairs_together(documents(chances, seed=seed)).found)
    assert false <= 1


def test_documents_of_different_length_make_no_pairs() -> None:
    lengths = torch.randint(5, 120, (400,), generator=torch.Generator().manual_seed(1))
    chances = (1 - 0.99 ** lengths.float())[:, None].expand(400, 50)
    whole = documents(chances, lengths)
    config = PairConfig(n_strata=1, most_share=1.0)
    assert len(pairs_together(whole, config=config).found) > 100
    assert len(pairs_together(whole, config=PairConfig(n_strata=12, most_share=1.0)).found) <= 3


def test_blocks_of_columns_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(3)
    topic = torch.rand(150, 1, generator=generator) < 0.3
    chances = torch.where(topic, torch.tensor(0.5), torch.tensor(0.05)).expand(150, 40)
    whole = documents(chances)
    one = pairs_together(whole, config=PairConfig(at_once=40)).found
    other = pairs_together(whole, config=PairConfig(at_once=3)).found
    assert one == other and len(one) > 50


def test_turning_latents_around_turns_the_pairs_around() -> None:
    codes, document = signed_tokens(n_tokens=300), torch.arange(100).repeat_interleave(3)
    both = codes.dense()
    both[:, 1] = 2 * both[:, 0]  # planted: the ends of 0 and 1 go together
    from saelab.sparse_codes import SparseCodes

    codes = SparseCodes.from_dense(both)
    directions = torch.eye(7)
    directions[1] = torch.tensor([0.6, 0.8, 0, 0, 0, 0, 0])

    def ends(latents: list[int]) -> set[tuple[int, int, int, int, float]]:
        flip = torch.ones(7)
        flip[latents] = -1
        found = DocumentCodes.of_tokens(turned(codes, latents), document, signed=True)
        config = PairConfig(most_share=1.0, n_strata=1)
        pairs = pairs_together(found, config=config, directions=directions * flip[:, None]).found
        return {(p.latent, p.sign, p.other, p.other_sign, round(p.cosine or 0, 4)) for p in pairs}

    before = ends([])
    assert {(0, 1, 1, 1, 0.6), (0, -1, 1, -1, 0.6)} <= before
    assert ends([1]) == {
        (j, -s if j == 1 else s, k, -t if k == 1 else t, c) for j, s, k, t, c in before
    }


def test_passages_of_the_same_texts_are_refused() -> None:
    whole = documents(torch.full((20, 5), 0.4), groups=torch.arange(20) // 2)
    with pytest.raises(DataError, match="one_per_group"):
        pairs_together(whole)
    pairs_together(whole.one_per_group(), config=PairConfig(least_documents=1, most_share=1.0))
    with pytest.raises(DataError, match="a pair needs two"):
        pairs_together(documents(torch.zeros(20, 5)))
