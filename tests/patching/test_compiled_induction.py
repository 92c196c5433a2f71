"""Methods against a circuit that was written by hand, with soft and with saturated attention."""

from functools import cache

import pytest
import torch

from saelab.circuits.feature_effects import EffectsConfig
from saelab.errors import ConfigError
from saelab.patching import (
    EdgeAblation,
    EdgeScores,
    Experiment,
    acdc,
    acdc_sweep,
    curve,
    edge_attribution,
    edge_effects,
    path_effect,
    precision_recall,
    roc_area,
)
from saelab.patching.compiled_induction import (
    TRUE_EDGES,
    TRUE_EDGES_OF_ZEROS,
    compiled_induction,
    induction_pairs,
)
from saelab.patching.experiment import StandIn

SOFT, SATURATED = 3.0, 50.0
EAP = EffectsConfig(method="attribution")


@cache
def experiment(beta: float, noise: float = 0.0, stand_in: StandIn = "patch") -> Experiment:
    return Experiment(compiled_induction(beta, noise=noise), induction_pairs(6), stand_in)


@cache
def exact(beta: float) -> EdgeScores:
    return edge_effects(experiment(beta))


def area(found: EdgeScores) -> float:
    truth = found.graph.mask(TRUE_EDGES)[found.graph.allowed()]
    return roc_area(found.values().abs(), truth)


def found_share(found: EdgeScores) -> float:
    """Of the true edges, those whose score is a hundredth of the largest or more."""
    sizes = found.scores.abs()
    return precision_recall(sizes > 0.01 * sizes.max(), found.graph.mask(TRUE_EDGES))[1]


@pytest.mark.parametrize("beta", [SOFT, SATURATED])
def test_the_model_does_what_it_was_written_for(beta: float) -> None:
    one = experiment(beta)
    assert bool((one.clean_logits.argmax(1) == one.pairs.answers).all())
    patched = one.model.logits(one.pairs.patch)[:, -1]
    assert bool((patched.argmax(1) == one.pairs.others).all())


def test_with_saturated_attention_it_looks_at_one_place_only() -> None:
    module = experiment(SATURATED).model.module
    pairs = induction_pairs(3)
    first, second = module.patterns(pairs.clean)  # type: ignore[operator]
    before = first[:, 0].diagonal(-1, dim1=1, dim2=2)
    assert float(before.min()) > 0.999
    for row, tokens in enumerate(pairs.clean):
        a = int((tokens[:-1] == tokens[-1]).nonzero()[0])
        assert float(second[row, 0, -1, a + 1]) > 0.999


@pytest.mark.parametrize("beta", [SOFT, SATURATED])
def test_exact_effects_are_zero_off_the_circuit_and_large_on_it(beta: float) -> None:
    found = exact(beta)
    truth = found.graph.mask(TRUE_EDGES)
    assert float(found.scores[~truth].abs().max()) < 1e-5
    assert float(found.scores[truth].max()) < -0.5  # each works for the answer
    assert area(found) == 1.0


@pytest.mark.parametrize(("beta", "threshold"), [(SOFT, 1e-9), (SATURATED, 1e-3)])
def test_removing_edges_one_by_one_leaves_the_circuit(beta: float, threshold: float) -> None:
    one = experiment(beta)
    result = acdc(one, threshold)
    assert set(result.edges()) == set(TRUE_EDGES)
    zeros = experiment(beta, stand_in="zero")
    result = acdc(zeros, threshold)
    assert set(result.edges()) == set(TRUE_EDGES_OF_ZEROS)
    assert result.nodes == ("a0.h0", "a1.h0")
    assert result.divergence < 1e-6
    # Edges into heads that nothing reads any more went without a pass.
    assert result.tried < int(one.graph.allowed().sum())


def test_noise_is_kept_or_removed_by_the_threshold() -> None:
    one = experiment(SOFT, noise=0.05)
    results, ranking = acdc_sweep(one, [1e-8, 1e-2])
    sizes = [len(result.edges()) for result in results]
    assert sizes[0] > sizes[1] == len(TRUE_EDGES)
    assert set(results[1].edges()) == set(TRUE_EDGES)
    assert area(ranking) == 1.0  # type: ignore[arg-type]
    assert ranking.of("a1.h0", "logits") == pytest.approx(1e-2)  # type: ignore[call-arg]


def test_components_can_be_removed_as_wholes() -> None:
    one = experiment(SOFT)
    result = acdc(one, 1e-6, "node")
    assert result.nodes == ("a0.h0", "a1.h0")
    assert result.tried == 6
    _, ranking = acdc_sweep(one, [1e-6, 1e-3], "node")
    assert [float(x) for x in ranking.values()] == pytest.approx([1e-3, 0, 0, 1e-3, 0, 0])


def test_slopes_find_the_circuit_where_attention_is_soft() -> None:
    one = experiment(SOFT, noise=0.01)
    for config in (EAP, EffectsConfig(steps=5)):
        scores = edge_attribution(one, config)
        assert found_share(scores) == 1.0
        assert area(scores) == 1.0


def test_slopes_at_the_clean_prompt_lose_edges_where_attention_is_saturated() -> None:
    one = experiment(SATURATED, noise=0.01)
    scores = edge_attribution(one, EAP)
    # Values still carry slopes; queries, keys and what feeds them do not.
    for sender, receiver in (("embed", "a1.q0"), ("a0.h0", "a1.k0"), ("embed", "a0.v0")):
        assert abs(scores.of(sender, receiver)) < 1e-6
    assert found_share(scores) == pytest.approx(2 / 5)
    assert area(scores) < 0.95


def test_integration_and_interventions_do_not_lose_them() -> None:
    one = experiment(SATURATED, noise=0.01)
    integrated = edge_attribution(one, EffectsConfig(steps=15))
    assert found_share(integrated) == 1.0
    assert area(integrated) == 1.0
    assert found_share(exact(SATURATED)) == 1.0
    assert path_effect(one, "a0.h0", ["a1.k0"]) < -1.0
    assert set(acdc(one, 1e-2).edges()) == set(TRUE_EDGES)


def test_each_kind_of_prompt_shows_the_edges_that_carry_its_difference() -> None:
    model = compiled_induction(SATURATED, n_distractors=1)
    shown = {}
    for kind in ("query", "key", "value"):
        one = Experiment(model, induction_pairs(2, kinds=(kind,)))
        scores = edge_effects(one).scores.abs()
        shown[kind] = {str(edge) for edge in one.graph.edges(scores > 0.1)}
    assert shown == {
        "query": {"embed->a1.q0", "a1.h0->logits"},
        "key": {"embed->a0.v0", "a0.h0->a1.k0", "a1.h0->logits"},
        "value": {"embed->a1.v0", "a1.h0->logits"},
    }


def test_the_circuit_alone_is_faithful_and_nothing_is_left_without_it() -> None:
    one = experiment(SATURATED)
    ranking = exact(SATURATED).ranked()
    assert set(ranking[:5]) == set(TRUE_EDGES)
    found = curve(EdgeAblation(one), ranking, [5, len(ranking)], "exact")
    assert found.points[0].faithfulness == pytest.approx(1.0, abs=1e-6)
    assert found.points[0].completeness == pytest.approx(0.0, abs=1e-6)


def test_permuted_labels_leave_no_ranking() -> None:
    one = experiment(SOFT, noise=0.05)
    areas = []
    for seed in range(6):
        null = Experiment(one.model, one.pairs.relabelled(seed))
        areas.append(float(edge_attribution(null, EAP).of("a1.h0", "logits")))
    true = edge_attribution(one, EAP).of("a1.h0", "logits")
    assert max(abs(x) for x in areas) < 0.25 * abs(true)


def test_prompts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="length"):
        induction_pairs(3, length=6)
    with pytest.raises(ConfigError, match="noise needs a distractor"):
        compiled_induction(n_distractors=0, noise=0.1)
    with pytest.raises(ConfigError, match="above 0"):
        acdc(experiment(SOFT), 0.0)
    pairs = induction_pairs(6)
    assert all(len(set(row.tolist())) == len(row) - 1 for row in pairs.clean)
    assert not torch.equal(pairs.clean, induction_pairs(6, seed=1).clean)
