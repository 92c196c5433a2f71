"""Curves, nulls and pairs: end points, what is drawn alike, and what a null must not find."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace

import pytest
import torch

from saelab.activation_functions import AbsTopK
from saelab.circuits import EffectsConfig, feature_effects, feature_sites
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.models import LanguageModel
from saelab.patching import (
    Ablation,
    EdgeAblation,
    Experiment,
    LatentAblation,
    NodeAblation,
    Pairs,
    curve,
    curve_sizes,
    edge_attribution,
    node_effects,
    null_curves,
    reset_model,
    shuffled_within_kinds,
    tokenized_pairs,
)
from saelab.patching.curves import Curve, Point
from saelab.sae import SAE
from tests import tiny_models
from tests.circuits.circuit_cases import model_of
from tests.patching.patching_cases import (
    NAMES,
    experiment_of,
    linear_experiment,
    linear_model,
    random_pairs,
)


class Additive:
    """What is measured is the sum of the items that are left."""

    def __init__(self) -> None:
        self.items: Sequence[Hashable] = [1, 2, 3, 10]

    def with_only(self, kept: Collection[Hashable]) -> float:
        return float(sum(kept)) - 4.0  # type: ignore[arg-type]

    def kind(self, item: Hashable) -> str:
        return "large" if item == 10 else "small"


def test_a_curve_is_the_share_of_the_way_from_nothing_to_everything() -> None:
    assert isinstance(Additive(), Ablation)
    found = curve(Additive(), [10, 3, 2, 1], [1, 2, 4], "sum")
    # Sixteenths are exact in binary.
    assert found.points == (
        Point(1, 10 / 16, 6 / 16),
        Point(2, 13 / 16, 3 / 16),
        Point(4, 1.0, 0.0),
    )
    assert found.size_at(0.8) == 2
    assert found.size_at(1.1) is None


def test_the_area_is_over_the_logarithm_of_size() -> None:
    # From 1 to 2 at 0.5, from 2 to 8 at 1: one third of the way and two thirds of it.
    flat = Curve("a", 8, (Point(1, 0.5, None), Point(2, 0.5, None), Point(8, 0.5, None)))
    assert flat.area() == pytest.approx(0.5)
    risen = Curve("a", 8, (Point(1, 0.0, 1.0), Point(2, 1.0, 0.0), Point(8, 1.0, 0.0)))
    assert risen.area() == pytest.approx((0.5 + 2) / 3)
    assert risen.area("completeness") == pytest.approx(0.5 / 3)
    with pytest.raises(DataError, match="completeness"):
        flat.area("completeness")


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_wholly_faithful_and_complete(name: str) -> None:
    one = experiment_of(name)
    for ablation in (NodeAblation(one), EdgeAblation(one)):
        ranking = list(ablation.items)
        found = curve(ablation, ranking, [1, len(ranking)], name)
        assert found.points[-1].faithfulness == pytest.approx(1.0, abs=1e-6)
        assert found.points[-1].completeness == pytest.approx(0.0, abs=1e-6)
        assert found.points[0].faithfulness != pytest.approx(1.0, abs=1e-3)


def test_in_a_linear_model_faithfulness_adds_up() -> None:
    one = linear_experiment()
    ablation, effects = EdgeAblation(one), edge_attribution(one)
    direct = [edge for edge in effects.ranked() if edge.receiver == "logits"]
    found = curve(ablation, direct, [len(direct)], "direct")
    # All direct edges, but none of what feeds the heads: only the embedding's own edge is left.
    alone = ablation.with_only([edge for edge in direct if edge.sender == "embed"])
    nothing = ablation.with_only([])
    share = (alone - nothing) / (one.clean - nothing)
    assert found.points[0].faithfulness == pytest.approx(share, abs=1e-9)


def test_latents_are_judged_by_the_same_curve() -> None:
    model, pairs = model_of("llama"), random_pairs()
    sae = SAE(32, 12, AbsTopK(4), hook="blocks.1.hook_resid_post", dtype=torch.float64)
    sites = feature_sites(model, [sae])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 3] - logits[:, -1, 7]

    effects = feature_effects(
        model, sites, pairs.clean, metric, pairs.patch, EffectsConfig(method="attribution")
    )
    ablation = LatentAblation(model, sites, pairs.clean, metric, pairs.patch)
    assert len(ablation.items) == 13
    ranking = [*effects.nodes(0.0)]
    ranking += [item for item in ablation.items if item not in ranking]
    found = curve(ablation, ranking, [2, 13], "latents")
    assert found.points[-1].faithfulness == pytest.approx(1.0, abs=1e-6)
    assert ablation.kind(ranking[0]).endswith("blocks.1.hook_resid_post")
    assert len(shuffled_within_kinds(ablation, ranking, 0)) == 13


def test_a_random_circuit_has_as_many_of_each_kind_at_every_size() -> None:
    ablation = NodeAblation(experiment_of("llama"))
    ranking = ["m0", "a0.h0", "m1", "a1.h3", "a2.h2"]
    kinds = [ablation.kind(item) for item in ranking]
    drawn = [shuffled_within_kinds(ablation, ranking, seed) for seed in range(8)]
    assert all([ablation.kind(item) for item in one] == kinds for one in drawn)
    assert all(len(set(one)) == 5 for one in drawn)
    assert len({tuple(one) for one in drawn}) == 8
    assert {item for one in drawn for item in one} - set(ranking)
    edges = EdgeAblation(experiment_of("llama"))
    assert {edges.kind(item) for item in edges.items} >= {"embed->q", "head->m", "m->logits"}


def test_a_reset_network_keeps_its_numbers_and_loses_its_function() -> None:
    model = model_of("llama")
    reset = reset_model(model, seed=3)
    before, after = (dict(m.module.named_parameters()) for m in (model, reset))  # type: ignore[attr-defined]
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(before[name], after[name])
    assert torch.equal(before[name].flatten().sort().values, after[name].flatten().sort().values)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    again = reset_model(model, seed=3)
    tokens = random_pairs().clean
    assert torch.equal(reset.logits(tokens), again.logits(tokens))
    assert not torch.allclose(reset.logits(tokens), model.logits(tokens))


def test_nulls_rank_without_the_answer() -> None:
    model, pairs = linear_model(), random_pairs(8)
    discovery, test = pairs.split()
    ablation = NodeAblation(Experiment(model, test))
    asked: list[tuple[str, bool]] = []

    def discover(model: LanguageModel, pairs: Pairs) -> list[str]:
        asked.append((model.name, torch.equal(pairs.answers, discovery.answers)))
        return node_effects(Experiment(model, pairs)).ranked()

    ranking = discover(model, discovery)
    found = null_curves(ablation, model, discovery, discover, ranking, [1, 3, 6], draws=2)
    assert [one.name for one in found] == ["random circuit", "labels permuted", "reset network"]
    assert all(one.is_null and len(one.curves) == 2 for one in found)
    assert asked[1:] == [("linear", False)] * 2 + [("linear with shuffled weights", True)] * 2


def test_pairs_are_split_without_sharing_a_row() -> None:
    pairs = random_pairs(9)
    half, other = pairs.split(seed=2)
    assert (len(half), len(other)) == (4, 5)
    rows = [tuple(row.tolist()) for part in (half, other) for row in part.clean]
    assert sorted(rows) == sorted(tuple(row.tolist()) for row in pairs.clean)


def test_permuted_labels_turn_half_of_the_rows() -> None:
    pairs = random_pairs(8)
    turned = pairs.relabelled(1)
    logits = torch.randn(8, 30, dtype=torch.float64)
    ratio = turned.measured(logits) / pairs.measured(logits)
    assert sorted(ratio.tolist()) == pytest.approx([-1.0] * 4 + [1.0] * 4)


def test_resampled_prompts_are_those_of_other_rows() -> None:
    pairs = random_pairs(5)
    other = pairs.resampled(3)
    assert not bool((other.patch == pairs.clean).all(1).any())
    rows = {tuple(row.tolist()) for row in pairs.clean}
    assert {tuple(row.tolist()) for row in other.patch} == rows


def test_text_becomes_pairs_of_one_length() -> None:
    model = tiny_models.tiny_language_model()
    pairs = tokenized_pairs(model, [("abc", "abd", "x", "y"), ("efg", "efh", "y", "x")])
    assert pairs.clean.shape == (2, 4)
    assert int(pairs.clean[0, 0]) == model.bos_token_id
    assert int(pairs.answers[0]) == int(pairs.others[1])
    with pytest.raises(ShapeError, match="'abcd' has 5 tokens"):
        tokenized_pairs(model, [("abc", "abcd", "x", "y")])
    with pytest.raises(ConfigError, match="'xy' is 2 tokens"):
        tokenized_pairs(model, [("abc", "abd", "xy", "z")])


def test_what_cannot_be_measured_is_refused() -> None:
    ablation = Additive()
    with pytest.raises(ConfigError, match="names an item twice"):
        curve(ablation, [1, 1], [1], "twice")
    with pytest.raises(ConfigError, match="sizes from 1 to 2"):
        curve(ablation, [1, 2], [3], "long")
    ablation.items = [0]
    with pytest.raises(ConfigError, match="with everything and with nothing"):
        curve(ablation, [0], [1], "flat")
    whole = replace(random_pairs(2), measure=lambda logits, *_: logits.sum())
    with pytest.raises(ShapeError, match=r"given 2 rows and returned \[\]"):
        whole.measured(torch.ones(2, 30))
    assert curve_sizes(1000, 4) == [1, 10, 100, 1000]
    assert curve_sizes(5, 9)[-1] == 5
