"""ROC, precision and rank correlation against numbers worked out by hand."""

import pytest
import torch

from saelab.errors import DataError, ShapeError
from saelab.patching.rankings import (
    average_precision,
    precision_recall,
    rank_correlation,
    roc,
    roc_area,
)

TRUTH = torch.tensor([True, False, True, False])


def test_the_area_lies_below_the_steps() -> None:
    # Order 0 (true), 1 (false), 2 (true), 3 (false): up to 1/2, right to 1/2, up to 1, right.
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert roc(scores, TRUTH) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    assert roc_area(scores, TRUTH) == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)


def test_equal_scores_count_as_wrong_ones_first() -> None:
    tied = torch.tensor([2.0, 2.0, 1.0, 1.0])
    # (0, 0) -> (1/2, 1/2) -> (1, 1): only the second half of the way is above 0.
    assert roc_area(tied, TRUTH) == pytest.approx(0.25)
    assert roc_area(torch.zeros(4), TRUTH) == 0.0


def test_a_turned_ranking_has_the_turned_area() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, generator=generator)
    truth = torch.rand(50, generator=generator) < 0.3
    assert roc_area(scores, truth) + roc_area(-scores, truth) == pytest.approx(1.0)
    assert roc_area(scores.exp(), truth) == roc_area(scores, truth)


def test_chance_has_area_one_half_and_the_prior_as_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(400) < 40
    areas, precisions = [], []
    for _ in range(40):
        scores = torch.rand(400, generator=generator)
        areas.append(roc_area(scores, truth))
        precisions.append(average_precision(scores, truth))
    assert sum(areas) / 40 == pytest.approx(0.5, abs=0.03)
    assert sum(precisions) / 40 == pytest.approx(0.1, abs=0.03)


def test_average_precision_by_hand() -> None:
    # Found at ranks 1 and 3: (1/1 + 2/3) / 2.
    assert average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), TRUTH) == pytest.approx(5 / 6)


def test_precision_and_recall_of_nothing() -> None:
    assert precision_recall(torch.zeros(4, dtype=torch.bool), TRUTH) == (1.0, 0.0)


def test_equal_values_share_their_rank() -> None:
    # Ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4; by hand 4.5 / sqrt(4.5 * 5).
    found = rank_correlation([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    assert found == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -1.0


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(DataError, match="Everything, or nothing"):
        roc_area(torch.zeros(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ShapeError, match="2 scores and 4 truths"):
        average_precision(torch.zeros(2), TRUTH)
    with pytest.raises(DataError, match="not all equal"):
        rank_correlation([1.0, 1.0], [1.0, 2.0])
