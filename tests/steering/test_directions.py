"""Directions that are planted in a model's activations are found, and can be pushed along."""

from typing import Any

import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.errors import CheckpointError, ConfigError, CorpusError, ShapeError
from saelab.models import load_model
from saelab.sae import SAE
from saelab.steering import (
    Clamp,
    Direction,
    Push,
    PushAlong,
    activation_addition,
    difference_in_means,
    intervene,
    latent_direction,
    load_interventions,
    principal_direction,
    probe_direction,
    random_direction,
    random_latents,
    save_interventions,
    steer,
)
from saelab.steering.contrasts import text_activations
from tests.tiny_models import random_tokens, tiny_language_model, tiny_llama, tiny_tokenizer

HOOK, LATER = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"
FILLERS = "abcdefghij"


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def planted():
    """A Llama whose embeddings are noise, and X = Y plus a known direction.

    A Llama adds no positions to its embeddings, so at the first block texts that differ in X and Y
    alone differ along that direction alone.
    """
    inner = tiny_llama(3)
    tokenizer = tiny_tokenizer()
    x, y = (tokenizer.encode(letter)[0] for letter in "XY")
    true = torch.randn(32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        weight = inner.model.embed_tokens.weight
        weight.mul_(0.5)
        weight[x] = weight[y] + true
    return load_model(inner, tokenizer=tokenizer, name="planted", device="cpu"), true


def texts(letter: str, n: int = 12) -> list[str]:
    """Different fillers around the same letter, the same for X and for Y."""
    return [f"{FILLERS[i % 10]}{letter}{FILLERS[(3 * i) % 10]}{letter}" for i in range(n)]


def cosine(direction, true) -> float:
    return direction.cosine(Direction(vector=true, hook=direction.hook, name="true"))


@pytest.mark.parametrize("find", [difference_in_means, principal_direction, probe_direction])
def test_a_planted_direction_is_found_with_its_sign(planted, find):
    model, true = planted
    found = find(model, HOOK, texts("X"), texts("Y"), tokens="last")
    back = find(model, HOOK, texts("Y"), texts("X"), tokens="last")
    assert cosine(found, true) > 0.9999
    assert found.cosine(back) == pytest.approx(-1, abs=1e-3)
    assert found.is_control is False


def test_the_difference_in_means_has_the_length_of_the_difference(planted):
    model, true = planted
    # Half of each text's four tokens are the letter: the mean differs by half the direction.
    found = difference_in_means(model, HOOK, texts("X"), texts("Y"))
    assert torch.allclose(found.vector, true / 2, atol=1e-5)
    last = difference_in_means(model, HOOK, texts("X"), texts("Y"), tokens="last")
    assert torch.allclose(last.vector, true, atol=1e-5)
    for find in (principal_direction, probe_direction):
        assert find(model, HOOK, texts("X"), texts("Y")).norm == pytest.approx(1, abs=1e-5)


def test_the_difference_in_means_gets_better_with_more_texts():
    """cos -> 1 as sigma sqrt(d / n) / |difference| -> 0, here with random fillers on both sides."""
    model: Any = load_model(tiny_llama(3), tokenizer=tiny_tokenizer(), name="noisy", device="cpu")
    true = torch.randn(32, generator=torch.Generator().manual_seed(5))
    x, y = (model.encode(letter)[0] for letter in "XY")
    with torch.no_grad():
        weight = model.module.model.embed_tokens.weight
        weight[x] = weight[y] + true

    def error(n):
        letters = random_tokens(2 * n, 3, d_vocab=60, seed=n).tolist()
        rows = ["".join(FILLERS[one % 10] for one in row) for row in letters]
        up, down = [f"{r}X" for r in rows[:n]], [f"{r}Y" for r in rows[n:]]
        return 1 - cosine(difference_in_means(model, HOOK, up, down), true)

    assert error(200) < 0.1 < error(3)


def test_texts_are_read_alone_whatever_stands_beside_them(model):
    rows = ["a", "abc def", "xy"]
    together = text_activations(model, LATER, rows)
    for row, found in zip(rows, together, strict=True):
        (alone,) = text_activations(model, LATER, [row])
        assert len(alone) == len(model.encode(row))
        assert torch.allclose(found, alone, atol=1e-5)


def test_activation_addition_replays_one_prompt_upon_another(model):
    """h(other) + (h(love) - h(other)) is h(love), position by position, and stops at the end."""
    love, other = "Love you", "Hate it!"
    found = activation_addition(model, LATER, love, other)
    row = torch.tensor([[0, *model.encode(other + " now")]])
    wanted = torch.tensor([[0, *model.encode(love)]])
    with intervene(model, [PushAlong(found, 1.0)]):
        pushed = model.activations(row, [LATER])[LATER][0]
    replayed = model.activations(wanted, [LATER])[LATER][0]
    plain = model.activations(row, [LATER])[LATER][0]
    n = wanted.shape[1]
    assert found.vector.shape == (n, model.d_model)
    assert torch.allclose(pushed[:n], replayed, atol=1e-4)
    assert torch.equal(pushed[n:], plain[n:])


def test_activation_addition_fills_the_shorter_prompt_with_spaces(model):
    filled = activation_addition(model, LATER, "Love", "")
    assert torch.equal(filled.vector, activation_addition(model, LATER, "Love", "    ").vector)
    assert torch.equal(filled.vector[0], torch.zeros(model.d_model))  # both begin with the BOS


def test_a_latent_is_pushed_along_as_it_is_pushed(model):
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    row = random_tokens(2, 9, d_vocab=250)
    with steer(model, sae, {7: 3.5}):
        latent = model.logits(row)
    with intervene(model, [PushAlong(latent_direction(sae, 7), 3.5)]):
        assert torch.equal(model.logits(row), latent)


@pytest.mark.parametrize("pole", [1.0, -1.0])
def test_turning_both_the_direction_and_the_strength_changes_nothing(model, pole):
    """The sign of a latent is a convention: no result of steering may depend on it."""
    sae = SAE(model.d_model, 24, AbsTopK(3), hook=HOOK, seed=1)
    turned = SAE(model.d_model, 24, AbsTopK(3), hook=HOOK, seed=1)
    with torch.no_grad():
        turned.W_dec[7] *= -1
        turned.W_enc[:, 7] *= -1
        turned.b_enc[7] *= -1
    row = random_tokens(2, 9, d_vocab=250)
    for edits in (
        [[Push(one, {7: sign * pole * 3})] for one, sign in ((sae, 1), (turned, -1))],
        [[Clamp(one, {7: sign * pole * 3})] for one, sign in ((sae, 1), (turned, -1))],
        [
            [PushAlong(latent_direction(sae, 7), 3 * pole)],
            [PushAlong(-latent_direction(sae, 7), -3 * pole)],
        ],
    ):
        results = []
        for some in edits:
            with intervene(model, some):
                results.append(model.logits(row))
        assert torch.equal(*results)


def test_strength_zero_gives_the_clean_logits_bit_for_bit(model):
    row = random_tokens(2, 9, d_vocab=250)
    clean = model.logits(row)
    one = Direction(vector=torch.randn(model.d_model), hook=LATER, name="any")
    for direction in (one, random_direction(one), activation_addition(model, LATER, "ab", "cd")):
        with intervene(model, [PushAlong(direction, 0.0)]):
            assert torch.equal(model.logits(row), clean)
        with intervene(model, [PushAlong(direction, 1.0)]):
            assert not torch.equal(model.logits(row), clean)


def test_random_directions_have_the_length_of_what_they_stand_for():
    one = Direction(vector=torch.randn(300) * 7, hook="h", name="one")
    drawn = [random_direction(one, seed) for seed in range(20)]
    for other in drawn:
        assert other.norm == pytest.approx(one.norm, rel=1e-5)
        assert other.is_control
        assert abs(one.cosine(other)) < 4 / 300**0.5  # cos ~ N(0, 1/d)
    assert torch.equal(random_direction(one, 3).vector, drawn[3].vector)
    rows = Direction(vector=torch.tensor([[0.0, 0.0], [3.0, 4.0]]), hook="h", name="rows")
    assert random_direction(rows).vector.norm(dim=1).tolist() == pytest.approx([0, 5])
    assert rows.norm == 5.0  # the row of zeros is not counted


def test_random_latents_are_drawn_without_those_that_are_studied():
    sae = SAE(16, 6, TopK(2), hook=HOOK)
    found = random_latents(sae, 4, seed=1, among=range(5), without=[2])
    assert sorted(one.made["latent"] for one in found) == [0, 1, 3, 4]
    assert all(one.is_control for one in found)
    with pytest.raises(ConfigError, match="4 are left to draw from"):
        random_latents(sae, 5, among=range(5), without=[2])


def test_a_recipe_with_directions_survives_its_files(model, tmp_path):
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    rows = activation_addition(model, LATER, "ab", "cd")
    edits = [Push(sae, {3: 1.5}), PushAlong(rows, -0.5), PushAlong(random_direction(rows), 2.0)]
    save_interventions(tmp_path / "recipe.json", edits)
    again = load_interventions(tmp_path / "recipe.json", [sae])
    assert [one.to_json() for one in again] == [one.to_json() for one in edits]
    row = random_tokens(2, 9, d_vocab=250)
    with intervene(model, edits):
        first = model.logits(row)
    with intervene(model, again):
        assert torch.equal(model.logits(row), first)
    beside = tmp_path / "recipe.safetensors"
    data = beside.read_bytes()
    beside.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not the file that was written"):
        load_interventions(tmp_path / "recipe.json", [sae])
    beside.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_interventions(tmp_path / "recipe.json", [sae])


def test_a_recipe_never_reads_another_file_than_the_one_beside_it(model, tmp_path):
    one = Direction(vector=torch.ones(model.d_model), hook=LATER, name="one")
    save_interventions(tmp_path / "a.json", [PushAlong(one, 1.0)])
    text = (tmp_path / "a.json").read_text().replace("a.safetensors", "../../secret.safetensors")
    (tmp_path / "a.json").write_text(text)
    assert len(load_interventions(tmp_path / "a.json")) == 1


def test_mistakes_are_refused(model):
    one = Direction(vector=torch.ones(model.d_model), hook=LATER, name="one")
    with pytest.raises(ConfigError, match="NaN"):
        Direction(vector=torch.tensor([float("nan")]), hook=LATER, name="bad")
    with pytest.raises(ConfigError, match="points nowhere"):
        Direction(vector=torch.zeros(3), hook=LATER, name="zero").of_norm(1.0)
    with pytest.raises(ConfigError, match="strength inf"):
        PushAlong(one, float("inf"))
    narrow = Direction(vector=torch.ones(3), hook=LATER, name="narrow")
    with pytest.raises(ShapeError, match="3 wide"), intervene(model, [PushAlong(narrow, 1.0)]):
        model.logits(random_tokens(1, 4))
    with pytest.raises(ConfigError, match="as many positive as negative"):
        principal_direction(model, LATER, ["a"], ["b", "c"])
    with pytest.raises(ConfigError, match="nothing to find"):
        principal_direction(model, LATER, ["a"], ["a"])
    with pytest.raises(ConfigError, match="'all' or 'last'"):
        difference_in_means(model, LATER, ["a"], ["b"], tokens="first")
    with pytest.raises(CorpusError, match="No texts"):
        difference_in_means(model, LATER, [], ["b"])
    with pytest.raises(CorpusError, match="has no tokens"):
        difference_in_means(model, LATER, [""], ["b"])
    with pytest.raises(CorpusError, match="Both prompts are empty"):
        activation_addition(model, LATER, "", "")
