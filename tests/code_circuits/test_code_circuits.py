"""Codes of heads: planted heads and pairs are found, random labels find nothing."""

from functools import cache

import pytest
import torch
from torch import Tensor

from saelab.code_circuits import (
    NO_CODE,
    CodeConfig,
    ScoreConfig,
    code_circuit,
    head_codes,
    head_outputs,
)
from saelab.code_circuits.scores import HeadPair
from saelab.errors import ConfigError, DataError, ModelError
from saelab.models import load_model
from saelab.patching import roc_area
from tests import tiny_models
from tests.attention_circuits.planted_induction import planted_induction, repeats
from tests.circuits.circuit_cases import WIDTH, model_of

N_LAYERS, N_HEADS, D, EACH = 4, 4, 16, 10
PLANTED = ((1, 2), (3, 0), (3, 3))
POSITIVE = torch.arange(2 * EACH) < EACH
FREQUENCY = ScoreConfig(score="frequency")


@cache
def planted_outputs(seed: int = 0) -> Tensor:
    """Random head outputs; chosen heads write a direction of their own on positives only."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(2 * EACH, N_LAYERS, N_HEADS, D, generator=generator)
    kinds = torch.randn(6, D, generator=generator)  # what all heads write, whatever the label
    drawn = torch.randint(6, x.shape[:3], generator=generator)
    x = x + kinds[drawn]
    for layer, head in PLANTED:
        x[POSITIVE, layer, head] += 4 * torch.randn(D, generator=generator)
    return x


def truth() -> Tensor:
    found = torch.zeros(N_LAYERS, N_HEADS, dtype=torch.bool)
    for layer, head in PLANTED:
        found[layer, head] = True
    return found


@cache
def planted_codes() -> Tensor:
    return head_codes(planted_outputs(), CodeConfig(d_sae=40))


@pytest.mark.parametrize("score", ["frequency", "unique"])
def test_planted_heads_are_ranked_first(score: str) -> None:
    found = code_circuit(planted_codes(), POSITIVE, ScoreConfig(score=score))  # type: ignore[arg-type]
    area = roc_area(found.head_excess().flatten(), truth().flatten())
    if score == "unique":  # a positive that shares its code with another counts for less
        assert area > 0.85
    else:
        assert area == 1.0
        assert set(PLANTED) == set(found.found_heads(0.01))


def test_random_labels_find_nothing() -> None:
    areas, hits = [], 0
    config = ScoreConfig(score="frequency", n_permutations=40)
    for seed in range(12):
        shuffled = POSITIVE[torch.randperm(2 * EACH, generator=torch.Generator().manual_seed(seed))]
        found = code_circuit(planted_codes(), shuffled, config)
        areas.append(roc_area(found.head_excess().flatten(), truth().flatten()))
        hits += len(found.found_heads(0.05))
    mean = sum(areas) / len(areas)
    assert 0.3 < mean < 0.6
    assert hits <= 0.1 * 12 * N_LAYERS * N_HEADS


def test_noise_has_a_high_score_and_no_excess() -> None:
    # A head whose code differs on every example: all of its codes are of one side only.
    codes = torch.zeros(2 * EACH, 1, 2, dtype=torch.int64)
    codes[:, 0, 0] = torch.arange(2 * EACH)
    codes[POSITIVE, 0, 1] = 5
    found = code_circuit(codes, POSITIVE, FREQUENCY)
    assert found.heads[0].tolist() == [1.0, 1.0]
    assert found.head_excess()[0, 0] == pytest.approx(0.0, abs=1e-6)
    assert found.head_excess()[0, 1] > 0.7
    assert found.heads_p[0, 0] == pytest.approx(1.0)
    assert found.heads_p[0, 1] < 0.02


def test_scores_by_hand() -> None:
    # Positives 1 1 2 3, negatives 3 4 4 and one without a code.
    column = torch.tensor([1, 1, 2, 3, 3, 4, 4, NO_CODE])
    labels = torch.arange(8) < 4
    found = code_circuit(
        column[:, None, None], labels, ScoreConfig(score="frequency", n_permutations=5)
    )
    assert found.heads.item() == pytest.approx(3 / 4)
    unique = ScoreConfig(score="unique", n_permutations=5)
    assert code_circuit(column[:, None, None], labels, unique).heads.item() == pytest.approx(0.5)
    silent = torch.full((8, 1, 1), NO_CODE)
    assert code_circuit(silent, labels, unique).heads.item() == 0.0
    same = torch.zeros(8, 1, 1, dtype=torch.int64)
    assert code_circuit(same, labels, unique).heads.item() == 0.0


def test_a_pair_is_found_whose_heads_alone_tell_nothing() -> None:
    # Two heads that agree on positives and disagree on negatives; each by itself is a coin.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) < 12
    coin = torch.randint(2, (24,), generator=generator)
    codes = torch.randint(2, (24, 3, 2), generator=generator)
    codes[:, 0, 1] = coin
    codes[:, 2, 0] = torch.where(labels, coin, 1 - coin)
    found = code_circuit(codes, labels, FREQUENCY)
    assert found.pairs[0, 1, 2, 0] == 1.0
    assert found.pairs_p[0, 1, 2, 0] < 0.01
    assert float(found.heads[0, 1]) == float(found.heads[2, 0]) == 0.0
    known = ~found.pairs.isnan()
    # Layers 0 to 1, 0 to 2 and 1 to 2, two heads each.
    assert int(known.sum()) == 12
    assert not known[1, 0, 0, 1] and not known[1, 0, 1, 1]
    wanted = torch.zeros_like(known)
    wanted[0, 1, 2, 0] = True
    assert roc_area(found.pair_excess()[known], wanted[known]) == 1.0


def test_found_pairs_join_found_heads() -> None:
    found = code_circuit(planted_codes(), POSITIVE, FREQUENCY)
    pairs = found.found_pairs()
    assert HeadPair((1, 2), (3, 0)) in pairs
    heads = set(found.found_heads())
    assert all(one in heads for pair in pairs for one in pair)


def test_naming_codes_and_ordering_heads_anew_changes_nothing_else() -> None:
    codes = planted_codes()
    plain = code_circuit(codes, POSITIVE, FREQUENCY)
    names = torch.randperm(41, generator=torch.Generator().manual_seed(2))
    renamed = torch.where(codes == NO_CODE, codes, names[codes.clamp_min(0)])
    again = code_circuit(renamed, POSITIVE, FREQUENCY)
    assert torch.equal(again.heads, plain.heads)
    assert torch.equal(again.pairs_p.nan_to_num(), plain.pairs_p.nan_to_num())
    order = torch.tensor([2, 0, 3, 1])
    turned = code_circuit(codes[:, :, order], POSITIVE, FREQUENCY)
    assert torch.equal(turned.heads, plain.heads[:, order])
    expected = plain.pairs[:, order][:, :, :, order]
    assert torch.equal(turned.pairs.nan_to_num(), expected.nan_to_num())


def test_codes_are_the_same_for_the_same_seed() -> None:
    config = CodeConfig(d_sae=20, epochs=20)
    outputs = planted_outputs()
    assert torch.equal(head_codes(outputs, config), head_codes(outputs, config))
    codes = head_codes(outputs, config)
    assert float((head_codes(outputs * 1000 + 7, config) == codes).float().mean()) > 0.99


def test_an_output_on_which_nothing_fires_has_no_code() -> None:
    outputs = planted_outputs().clone()
    outputs[3, 1, 1] = 0
    codes = head_codes(outputs, CodeConfig(d_sae=20, l1=5.0, epochs=300, scale="none"))
    assert int(codes[3, 1, 1]) == NO_CODE


@pytest.mark.parametrize("name", ["neox", "gemma2"])
def test_heads_in_the_stream_sum_to_what_attention_adds(name: str) -> None:
    model = model_of(name)
    tokens = tiny_models.random_tokens(3, 6, 200, seed=1)
    outputs = head_outputs(model, tokens, position=4)
    assert outputs.shape == (3, 3, 4, WIDTH)
    place = "blocks.1.hook_attn_out"
    if name == "gemma2":  # what a norm follows
        place = "model.layers.1.self_attn.output"
    added = model.activations(tokens, [place])[place][:, 4]
    zero = model.hook_point("blocks.1.attn.hook_z").name
    with model.editing({zero: torch.zeros_like}):
        bias = model.activations(tokens, [place])[place][:, 4]
    assert torch.allclose(outputs[:, 1].sum(1), added - bias, atol=1e-9)
    z = model.activations(tokens, [zero])[zero][:, 4]
    assert torch.allclose(head_outputs(model, tokens, 4, "head")[:, 1].flatten(1), z, atol=1e-6)


def test_the_compiled_induction_head_is_found_and_no_other() -> None:
    positives, negatives = repeats(10)
    outputs = head_outputs(planted_induction(), torch.cat([positives, negatives]))
    codes = head_codes(outputs, CodeConfig(d_sae=60))
    found = code_circuit(codes, POSITIVE, FREQUENCY)
    wanted = torch.zeros(2, 5, dtype=torch.bool)
    wanted[1, 0] = True
    assert roc_area(found.head_excess().flatten(), wanted.flatten()) == 1.0
    assert found.found_heads(0.01) == [(1, 0)]


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="two positives"):
        code_circuit(planted_codes(), torch.arange(2 * EACH) < 1)
    with pytest.raises(DataError, match="without NaN"):
        head_codes(torch.full((4, 1, 1, 3), torch.nan))
    with pytest.raises(ConfigError, match="position 9"):
        head_outputs(model_of("gpt2"), torch.ones(2, 4, dtype=torch.int64), 9)
    with pytest.raises(ConfigError, match="epochs=0"):
        CodeConfig(epochs=0)
    with pytest.raises(ConfigError, match="n_permutations=0"):
        ScoreConfig(n_permutations=0)
    plain = load_model(tiny_models.TinyPlainModel(), name="plain", device="cpu")
    with pytest.raises(ModelError, match="traced in transformers models"):
        head_outputs(plain, torch.ones(2, 4, dtype=torch.int64))
