"""Absorption on a planted tree: the rate is the frequency of the word that has its own latent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.activation_functions import AbsTopK, ReLU
from saelab.errors import ConfigError, DataError
from saelab.normalization import Normalization
from saelab.probing.absorption import (
    Absorption,
    AbsorptionConfig,
    absorption_of_word,
    measure_absorption,
)
from saelab.probing.first_letter import first_letter_activations, first_letter_words
from saelab.probing.splitting import divide
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from tests.tiny_models import tiny_language_model

D, LETTERS, WORDS = 40, "abcd", 6
FEW = AbsorptionConfig(min_classes=3)


RARE = 2
"""The word of each letter that is five times rarer: a latent of its own is no second main latent,
because it raises the F1 of the sparse probe by less than 0.03."""


def _words(copies: int = 10) -> tuple[torch.Tensor, list[str], list[str]]:
    """x = letter direction + word direction, several times each with a little noise."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    rows, letters, words = [], [], []
    for i, letter in enumerate(LETTERS):
        for j in range(WORDS):
            for _ in range(copies // 5 if j == RARE else copies):
                own = basis[len(LETTERS) + i * WORDS + j]
                rows.append(basis[i] + own + 0.01 * torch.randn(D, generator=generator))
                letters.append(letter)
                words.append(f"{letter}{j}")
    return torch.stack(rows), letters, words


def _dictionary(absorbed: str | None, scale: float = 1.0, b_dec: float = 0.0) -> SAE:
    """One latent a letter and one a word; `absorbed` has letter and word in one, alone."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    n = len(LETTERS) * (1 + WORDS)
    encoder, decoder, bias = basis[:n].clone(), basis[:n].clone(), torch.full((n,), -0.2)
    if absorbed is not None:
        i, j = LETTERS.index(absorbed[0]), int(absorbed[1])
        word = len(LETTERS) + i * WORDS + j
        own = basis[word]
        decoder[word] = (basis[i] + own) / 2**0.5
        encoder[i] = basis[i] - 2 * own  # the letter's latent falls silent on that word
        encoder[word] = 1.6 * own
    sae = SAE(D, n, ReLU(), normalization=Normalization(scale_in=scale, scale_out=scale))
    with torch.no_grad():
        sae.W_enc.copy_(encoder.T)
        sae.W_dec.copy_(decoder)
        sae.b_enc.copy_(bias)
        sae.b_dec.copy_(b_dec * basis[:4].sum(0))
    return sae


def _measured(sae: SAE, x: torch.Tensor, letters: list[str], words: list[str]):
    division = divide(np.array(words), test_share=0.5)  # every word on both sides
    return measure_absorption(sae, x, letters, division, config=FEW), division


@pytest.fixture(scope="module")
def swallowed() -> tuple[Absorption, list[str]]:
    """What is measured where "c2" has a latent of its own, and the words of c it is measured on."""
    x, letters, words = _words()
    found, division = _measured(_dictionary("c2"), x, letters, words)
    return found, [words[i] for i in division.test if letters[i] == "c"]


def test_the_full_rate_is_the_frequency_of_the_absorbed_word(
    swallowed: tuple[Absorption, list[str]],
) -> None:
    found, tested = swallowed
    by_name = {one.name: one for one in found.classes}
    assert by_name["c"].n == len(tested)
    assert by_name["c"].full == pytest.approx(1 / 26) == tested.count("c2") / len(tested)
    assert by_name["c"].absorbers == {4 + 2 * WORDS + 2: tested.count("c2")}
    assert by_name["c"].main == (2,)
    assert [by_name[name].full for name in "abd"] == [0, 0, 0]
    assert found.full == pytest.approx(by_name["c"].full / 4)
    assert found.n_classes == 4 and found.enough


def test_an_oracle_absorbs_nothing_and_tells_the_letters() -> None:
    x, letters, words = _words()
    found, _ = _measured(_dictionary(None), x, letters, words)
    assert found.full == found.part == 0
    assert found.main_f1 == 1.0
    assert all(one.probe_f1 == 1.0 and len(one.main) == 1 for one in found.classes)


def test_a_large_decoder_bias_changes_nothing(
    swallowed: tuple[Absorption, list[str]],
) -> None:
    (x, letters, words), (plain, _) = _words(), swallowed
    sae = _dictionary("c2", b_dec=50.0)
    shifted, _ = _measured(sae, x + sae.b_dec.detach(), letters, words)
    assert shifted.full == plain.full > 0


def test_units_of_the_latents_and_of_the_model_change_nothing(
    swallowed: tuple[Absorption, list[str]],
) -> None:
    (x, letters, words), (plain, _) = _words(), swallowed
    scaled, _ = _measured(_dictionary("c2", scale=1 / 64), 64 * x, letters, words)
    assert (scaled.full, scaled.part) == (plain.full, pytest.approx(plain.part, abs=1e-3))


def test_an_undertrained_dictionary_is_given_away_by_its_sparse_probe() -> None:
    x, letters, words = _words()
    sae = SAE(D, 28, ReLU(), seed=5)
    with torch.no_grad():
        sae.b_enc.fill_(-0.5)
    found, _ = _measured(sae, x, letters, words)
    assert found.full < 0.2
    assert found.main_f1 < 0.9 < min(one.probe_f1 for one in found.classes)


def test_turning_signed_latents_around_changes_nothing() -> None:
    x, letters, words = _words()
    sae = _dictionary("c2")
    signed = SAE(D, sae.d_sae, AbsTopK(2))
    flip = torch.where(torch.arange(sae.d_sae) % 3 == 0, -1.0, 1.0)
    results = []
    for sign in (torch.ones_like(flip), flip):
        with torch.no_grad():
            signed.W_enc.copy_(sae.W_enc * sign)
            signed.W_dec.copy_(sae.W_dec * sign[:, None])
        results.append(_measured(signed, x, letters, words)[0])
    assert [one.main for one in results[0].classes] == [one.main for one in results[1].classes]
    assert results[0].full == results[1].full
    assert results[0].part == pytest.approx(results[1].part, abs=1e-6)


def _word(values: dict[int, float], directions: torch.Tensor, to_explain: float, main: list[int]):
    codes = SparseCodes.from_dense(
        torch.tensor([[values.get(i, 0.0) for i in range(len(directions))]])
    )
    return absorption_of_word(codes, directions, torch.tensor([2.0, 0.0]), to_explain, main)


def test_a_single_word_follows_the_formulas() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0], [0.03, 1.0]])
    # silent main latent 0; latent 1 adds 1 * 0.6 of P = 1: 60 % >= 40 %
    assert _word({1: 1.0, 2: 5.0}, directions, 1.0, [0]) == (1, 1.0)
    # P = 1.6: 37.5 % < 40 %
    assert _word({1: 1.0}, directions, 1.6, [0]) == (None, 0.0)
    # the main latent fires and explains 0.5; S = 0.6, s = min(0.6, 0.5); 0.5 / (0.5 + 0.5)
    full, part = _word({0: 0.5, 1: 1.0}, directions, 1.0, [0])
    assert full is None and part == pytest.approx(0.5)
    # the main latent explains all
    assert _word({0: 1.0, 1: 1.0}, directions, 1.0, [0]) == (None, 0.0)
    # a signed latent that points away and is negative adds along the probe
    assert _word({3: -0.7}, directions, 1.0, [0]) == (3, 1.0)
    # and a negative main latent has fired
    assert _word({0: -0.1, 1: 1.0}, directions, 1.0, [0])[0] is None
    # |cosine| 0.03 is enough to absorb fully, not to count in part
    assert _word({4: 20.0}, directions, 1.0, [0]) == (4, 0.0)
    assert _word({1: 1.0}, directions, -0.1, [0]) == (None, 0.0)


def test_a_decoder_row_of_another_length_is_the_same_latent() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    longer = directions * torch.tensor([[1.0], [10.0]])
    assert _word({1: 1.0}, directions, 1.0, [0]) == _word({1: 0.1}, longer, 1.0, [0])


def test_transcoders_and_strange_thresholds_are_refused() -> None:
    x, letters, words = _words(10)
    with pytest.raises(ConfigError, match="writes where it reads"):
        transcoder = SAE(D, 8, ReLU(), hook="a", hook_out="b")
        measure_absorption(transcoder, x, letters, divide(np.array(words), test_share=0.5))
    with pytest.raises(ConfigError, match="at least one latent"):
        replace(FEW, max_main=0)


def test_words_are_read_at_their_last_token_after_other_words() -> None:
    model = tiny_language_model()
    words, hook = ["apple", "berry", "cherry", "date"], "blocks.1.hook_resid_post"
    found = first_letter_activations(model, hook, words, n_examples=1, rows_per_batch=3, seed=0)
    assert found.shape == (4, 32)
    for word, row in zip(words, found, strict=True):
        prompts = [
            f" {other} has the first letter: {other[0].upper()}\n {word}"
            for other in words
            if other != word
        ]
        near = [
            model.activations(torch.tensor([[0, *model.encode(prompt)]]), [hook])[hook][0, -1]
            for prompt in prompts
        ]
        assert min(float((row - one).norm()) for one in near) < 1e-3
    with pytest.raises(ConfigError, match="4 different words"):
        first_letter_activations(model, hook, words, n_examples=4)
    with pytest.raises(DataError, match="no token that is a space and a word"):
        first_letter_words(model)  # its tokens are bytes


def test_words_are_whole_lower_case_tokens_with_a_space() -> None:
    model = tiny_language_model()
    texts = [" house", "house", " House", " at", " hus2", " été", " river"]
    model.token_strings = lambda ids: [texts[i % 7] for i in ids]  # type: ignore[method-assign]
    assert sorted(first_letter_words(model)) == ["house", "river"]
    assert first_letter_words(model, 1) == first_letter_words(model, 1)
