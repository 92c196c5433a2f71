"""Numbers of a probe, against hand counts and against scikit-learn."""

import numpy as np
import pytest

from saelab.errors import DataError, ShapeError
from saelab.probing.measures import auroc, average_precision, bootstrap_interval, f1, score


def test_auroc_counts_a_tie_as_half_a_win() -> None:
    # positives 2, 1; negatives 1, 0: wins 2>1, 2>0, 1>0 and one tie 1=1 of four pairs
    assert auroc(np.array([2.0, 1, 1, 0]), np.array([1, 1, 0, 0])) == 3.5 / 4


def test_a_constant_score_knows_nothing() -> None:
    found = score(np.zeros(10), np.arange(10) < 3)
    assert found.auroc == 0.5
    assert found.average_precision == pytest.approx(0.3)
    assert (found.f1, found.accuracy, found.balanced_accuracy) == (0.0, 0.7, 0.5)


def test_scores_with_many_ties_agree_with_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(-3, 4, 60).astype(float)
        truth = generator.random(60) < 0.3
        found = score(scores, truth)
        assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
        assert found.average_precision == pytest.approx(average_precision_score(truth, scores))
        assert found.f1 == pytest.approx(f1_score(truth, scores > 0))


def test_average_precision_does_not_depend_on_the_order_of_equal_scores() -> None:
    scores, truth = np.array([1.0, 1, 1, 0]), np.array([1, 0, 0, 1])
    # threshold 1: precision 1/3, recall 1/2; threshold 0: precision 1/2, recall 1
    wanted = 0.5 * (1 / 3) + 0.5 * (2 / 4)
    assert average_precision(scores, truth) == pytest.approx(wanted)
    turned = np.array([2, 1, 0, 3])
    assert average_precision(scores[turned], truth[turned]) == pytest.approx(wanted)


def test_turning_scores_around_turns_auroc_around() -> None:
    generator = np.random.default_rng(1)
    scores, truth = generator.integers(0, 5, 50).astype(float), generator.random(50) < 0.5
    assert auroc(-scores, truth) == pytest.approx(1 - auroc(scores, truth))
    assert auroc(scores, ~truth) == pytest.approx(1 - auroc(scores, truth))
    assert auroc(7 * scores + 3, truth) == auroc(scores, truth)


def test_f1_where_nothing_is_said_to_be_positive_is_zero() -> None:
    assert f1(np.zeros(3), np.array([1, 0, 1])) == 0.0
    assert f1(np.zeros(3), np.zeros(3)) == 0.0
    assert f1(np.ones(4), np.array([1, 0, 0, 0])) == pytest.approx(2 * 0.25 / 1.25)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    from scipy.stats import norm

    generator, covered, truth = np.random.default_rng(2), 0, np.arange(120) % 2 == 0
    true_auroc = norm.cdf(1 / np.sqrt(2))
    for seed in range(40):
        scores = truth + generator.standard_normal(120)
        interval = bootstrap_interval(scores, truth, n_resamples=200, seed=seed, level=0.9)
        covered += interval.low <= true_auroc <= interval.high
    assert 31 <= covered <= 40  # 36 expected


def test_groups_of_copies_widen_the_interval() -> None:
    generator = np.random.default_rng(3)
    truth = np.arange(40) % 2 == 0
    scores = truth + generator.standard_normal(40)
    copies, groups = np.repeat(np.arange(40), 10), np.repeat(np.arange(40), 10)
    single = bootstrap_interval(scores, truth, seed=0)
    naive = bootstrap_interval(scores[copies], truth[copies], seed=0)
    grouped = bootstrap_interval(scores[copies], truth[copies], groups=groups, seed=0)
    width = single.high - single.low
    assert naive.high - naive.low < 0.5 * width
    assert grouped.high - grouped.low == pytest.approx(width, rel=0.25)


def test_one_class_different_lengths_and_nan_are_refused() -> None:
    with pytest.raises(DataError, match="of one class"):
        score(np.zeros(3), np.ones(3))
    with pytest.raises(ShapeError, match="must both be"):
        auroc(np.zeros(3), np.ones(4))
    with pytest.raises(DataError, match="not a number"):
        auroc(np.array([np.nan, 1.0]), np.array([0, 1]))
