"""The yardstick on a task whose answer is built in: every number has an exact value."""

import functools
import itertools

import pytest
import torch
from torch import nn

from saelab.activation_functions import ReLU, TopK
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.models import load_model
from saelab.sae import SAE
from saelab.yardstick import (
    agreement,
    approximate,
    counterfactual,
    fit_supervised,
    greedy_edit,
    ioi_names,
    ioi_prompts,
    matched_values,
    outcome,
    read_at,
    share_of_values,
    weights_of,
)
from saelab.yardstick.ioi import PLACES, TEMPLATES, THINGS
from tests.tiny_models import tiny_tokenizer

PEOPLE = ("Mary", "John", "Alice", "Paul", "Emma", "Mark")
WORDS = sorted(
    {
        word
        for template in TEMPLATES
        for part in template
        for place, thing in itertools.product(PLACES, THINGS)
        for word in part.format(place=place, thing=thing).split()
    }
    | set(PEOPLE)
)
HOOK, WIDTH = "place.output", 2 * len(PEOPLE) + 2


@functools.cache
def directions():
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]


class Answers(nn.Module):
    """Where the third name has been read, the stream holds IO, S and the order, each in a direction
    of its own; the answer is read from the first two."""

    def __init__(self, name_ids) -> None:
        super().__init__()
        self.name_ids = name_ids
        self.place, self.head = nn.Identity(), nn.Linear(WIDTH, 2 + len(WORDS), bias=False)
        n = len(PEOPLE)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[name_ids] = 3 * directions()[:n] - directions()[n : 2 * n]

    def forward(self, tokens):
        x, n = torch.full((*tokens.shape, WIDTH), 0.1), len(PEOPLE)
        for row, ids in enumerate(tokens.tolist()):
            seen = []
            for at, one in enumerate(ids):
                if one in self.name_ids:
                    seen.append(self.name_ids.index(one))
                if len(seen) == 3:
                    s = seen[2]
                    io = next(name for name in seen if name != s)
                    order = int(seen[0] == s)
                    parts = (2 * directions()[io], 1.5 * directions()[n + s])
                    x[row, at] += sum(parts) + directions()[2 * n + order]
        return self.head(self.place(x))


@pytest.fixture(scope="module")
def model():
    tokenizer = tiny_tokenizer(WORDS)
    ids = [tokenizer.encode(name, add_special_tokens=False)[0] for name in PEOPLE]
    return load_model(Answers(ids), tokenizer=tokenizer, name="answers", device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return ioi_prompts(model, 120, names=PEOPLE)


@pytest.fixture(scope="module")
def x(model, prompts):
    return read_at(model, prompts, HOOK, "END")


def oracle():
    sae = SAE(WIDTH, WIDTH, ReLU(), hook=HOOK, pre_bias=False)
    with torch.no_grad():
        sae.W_dec.copy_(directions())
        sae.W_enc.copy_(directions().T)
        sae.b_enc.copy_(-directions() @ torch.full((WIDTH,), 0.1) - 1e-4)
        sae.b_dec.fill_(0.1)
    return sae


def test_prompts_say_what_their_attributes_say(model, prompts):
    known = prompts.attributes()
    for row in (0, 1, 17, 100):
        words = prompts.text(row, model).split()
        names = [word for word in words if word in PEOPLE]
        io, s = (PEOPLE[int(known[name][row])] for name in ("IO", "S"))
        assert names == ([io, s, s] if int(known["order"][row]) == 0 else [s, io, s])
        for position, name in (("IO", io), ("S1", s), ("S2", s)):
            token = int(prompts.ids[row, prompts.positions[position][row]])
            assert token == model.encode(f" {name}")[0]
        assert int(prompts.positions["END"][row]) == int(prompts.mask[row].sum()) - 1
        assert words[-1] == "to"
    assert int(prompts.positions["S1"][0]) != int(prompts.positions["S2"][0])
    assert len({one.template for one in prompts.specs}) == 4
    again = ioi_prompts(model, 120, names=PEOPLE)
    assert torch.equal(again.ids, prompts.ids)


@pytest.mark.parametrize("attribute", ["IO", "S", "order"])
def test_a_counterfactual_differs_in_one_attribute(model, prompts, attribute):
    other = counterfactual(model, prompts, attribute)
    before, after = prompts.attributes(), other.attributes()
    for name, values in before.items():
        assert bool((values != after[name]).all()) == (name == attribute)
        assert bool((values == after[name]).all()) == (name != attribute)
    assert bool((after["IO"] != after["S"]).all())


def test_mean_and_mse_are_one_dictionary_where_attributes_are_independent_and_additive():
    first, second = (one.flatten() for one in torch.meshgrid(
        torch.arange(5), torch.arange(4), indexing="ij"))  # fmt: skip
    u, v = torch.randn(5, 7), torch.randn(4, 7)
    x, known = u[first] + v[second] + 3.0, {"a": first, "b": second}
    mean, mse = (fit_supervised(x, known, method) for method in ("mean", "mse"))
    for one in (mean, mse):
        torch.testing.assert_close(one.reconstruct(known), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean.vectors["a"], u - u.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mse.vectors["a"], mean.vectors["a"], atol=1e-4, rtol=1e-4)


def test_only_mse_is_right_where_attributes_go_along_with_each_other():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(4, (400,), generator=generator)
    follows = torch.rand(400, generator=generator) < 0.8
    second = torch.where(follows, first, torch.randint(4, (400,), generator=generator))
    u, v = torch.randn(4, 7), torch.randn(4, 7)
    x, known = u[first] + v[second], {"a": first, "b": second}
    error = {
        method: float((fit_supervised(x, known, method).reconstruct(known) - x).norm())
        for method in ("mean", "mse")
    }
    assert error["mse"] < 1e-3 < 1.0 < error["mean"]


def test_what_is_not_in_the_activations_has_vectors_that_vanish():
    sizes = []
    for n in (100, 10_000):
        generator = torch.Generator().manual_seed(1)
        present, absent = (torch.randint(3, (n,), generator=generator) for _ in range(2))
        x = torch.nn.functional.one_hot(present, 5).float()
        found = fit_supervised(x, {"present": present, "absent": absent}, "mean")
        sizes.append(float(found.vectors["absent"].norm(dim=1).max()))
    assert sizes[1] < 0.2 * sizes[0] and sizes[1] < 0.05


def test_the_supervised_dictionary_is_sufficient_and_necessary(model, prompts, x):
    known = prompts.attributes()
    told = fit_supervised(x, known, "mse", prompts.sizes)
    found = approximate(model, prompts, HOOK, "END", x, told.reconstruct(known), told.mean)
    assert found.sufficiency == pytest.approx(1.0, abs=1e-3)
    assert found.necessity == pytest.approx(1.0, abs=1e-3)
    assert found.clean == pytest.approx(2 * 3 + 1.5, abs=0.2)  # 3 times io, less minus s
    half = {**known, "IO": torch.zeros_like(known["IO"])}
    worse = approximate(
        model, prompts, HOOK, "END", x, told.reconstruct(half), told.mean,
        known=(found.clean, found.ablated),
    )  # fmt: skip
    assert worse.sufficiency is not None and worse.sufficiency < 0.7
    untouched = approximate(model, prompts, HOOK, "S1", x * 0, x * 0, told.mean)
    assert untouched.necessity is None  # nothing is read there


@pytest.mark.parametrize("attribute", ["IO", "S", "order"])
def test_two_oracle_latents_change_one_attribute(model, prompts, x, attribute):
    sae, other = oracle(), counterfactual(model, prompts, attribute)
    y = read_at(model, other, HOOK, "END")
    source, target = (sae.encode(one).dense() for one in (x, y))
    edit = greedy_edit(x, source, target, y, sae.W_dec.detach(), 2)
    torch.testing.assert_close(edit.edited, y, atol=2e-3, rtol=1e-3)
    wanted = outcome(model, prompts, HOOK, "END", y).choice
    assert agreement(outcome(model, prompts, HOOK, "END", edit.edited).choice, wanted) == 1.0
    nothing = agreement(outcome(model, prompts).choice, wanted)
    assert nothing == (0.0 if attribute == "IO" else 1.0)  # S hardly matters to the answer
    told = fit_supervised(x, prompts.attributes(), "mse", prompts.sizes)
    moved = told.exchange(attribute, prompts.attributes()[attribute], other.attributes()[attribute])
    torch.testing.assert_close(x + moved, y, atol=1e-3, rtol=1e-3)
    share = edit.removed[0]
    size = {"IO": 4.0, "S": 2.25, "order": 1.0}[attribute] / (4 + 2.25 + 1)
    assert float(share) == pytest.approx(size, abs=0.02)


def test_all_latents_together_give_the_difference_of_the_reconstructions(x):
    sae = SAE(WIDTH, 40, TopK(4), seed=3)
    source, target = sae.encode(x[:20]).dense(), sae.encode(x[20:40]).dense()
    edit = greedy_edit(x[:20], source, target, x[20:40], sae.W_dec.detach(), 99)
    expected = sae.decode(target) - sae.decode(source)
    torch.testing.assert_close(edit.edited - x[:20], expected, atol=1e-5, rtol=1e-4)
    few = greedy_edit(x[:20], source, target, x[20:40], sae.W_dec.detach(), 1)
    assert bool((few.changed.sum(1) == 1).all())
    one = (target - source)[0]
    best = min(
        float((x[0] + one[i] * sae.W_dec[i].detach() - x[20]).norm())
        for i in one.nonzero().flatten().tolist()
    )
    assert float((few.edited[0] - x[20]).norm()) == pytest.approx(best, abs=1e-5)


def test_a_random_dictionary_edits_worse_than_the_oracle(model, prompts, x):
    other = counterfactual(model, prompts, "IO")
    y = read_at(model, other, HOOK, "END")
    wanted = outcome(model, prompts, HOOK, "END", y).choice
    reached = {}
    for name, sae in (("oracle", oracle()), ("random", SAE(WIDTH, WIDTH, TopK(4), seed=7))):
        source, target = sae.encode(x).dense(), sae.encode(y).dense()
        edit = greedy_edit(x, source, target, y, sae.W_dec.detach(), 2)
        reached[name] = agreement(outcome(model, prompts, HOOK, "END", edit.edited).choice, wanted)
    assert reached["oracle"] == 1.0 > reached["random"] + 0.2


def test_weights_of_a_reconstruction_sum_to_one():
    sae, x = SAE(10, 30, TopK(5), seed=1), torch.randn(20, 10)
    weights = weights_of(sae.encode(x).dense(), sae.W_dec.detach())
    torch.testing.assert_close(weights.sum(1), torch.ones(20), atol=1e-4, rtol=1e-4)


def test_oracle_latents_stand_for_one_value_each(prompts, x):
    found = matched_values(oracle().encode(x).dense(), prompts.attributes())
    assert len(found) == WIDTH
    assert [one.f1 for one in found] == [1.0] * WIDTH
    assert [(one.attribute, one.values) for one in found[:2]] == [("IO", (0,)), ("IO", (1,))]
    assert found[-1].attribute == "order"
    assert share_of_values(found, "IO", len(PEOPLE)) == 1.0
    assert share_of_values(found, "S", len(PEOPLE)) == 1.0


def test_a_union_is_found_as_one_and_noise_scores_low_on_examples_that_did_not_choose():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(8, (2000,), generator=generator)
    union = torch.isin(values, torch.tensor([1, 4, 6])).float()
    noise = (torch.rand(2000, generator=generator) < 0.1).float()
    codes = torch.stack([union, noise], dim=1)
    told, chance = matched_values(codes, {"a": values})
    assert (sorted(told.values), told.f1) == ([1, 4, 6], 1.0)
    assert chance.f1 < 0.3
    turned = matched_values(-codes, {"a": values})
    assert [one.f1 for one in turned] == [told.f1, chance.f1]


def test_mistakes_are_refused(model, prompts, x):
    with pytest.raises(DataError, match="three are needed"):
        ioi_names(model, ["Mary", "Zebedee"])
    with pytest.raises(ConfigError, match="attribute='T'"):
        counterfactual(model, prompts, "T")
    with pytest.raises(ConfigError, match="position='S3'"):
        read_at(model, prompts, HOOK, "S3")
    with pytest.raises(ShapeError, match="120 prompts need as many rows"):
        outcome(model, prompts, HOOK, "END", x[:3])
    with pytest.raises(ConfigError, match="no hook point"):
        outcome(model, prompts, values=x)
    with pytest.raises(ConfigError, match="'mean' or 'mse'"):
        fit_supervised(x, prompts.attributes(), "median")
    with pytest.raises(ShapeError, match="as many values of IO"):
        fit_supervised(x[:3], prompts.attributes())
    with pytest.raises(ConfigError, match="k=0"):
        greedy_edit(x, x, x, x, torch.eye(WIDTH), 0)
