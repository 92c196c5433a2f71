"""Designs, splits and linear probes: what is fitted on training rows stays there."""

import numpy as np
import pytest
import torch

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.probing.design import Design
from saelab.probing.linear import coefficients, fit_probe
from saelab.probing.splitting import balanced, divide, folds, group_numbers
from saelab.sparse_codes import SparseCodes

N = 400


def _data(seed: int = 0, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.random(N) < 0.4
    x = generator.standard_normal((N, d))
    x[:, 2] += 2 * y
    return x, y


def _sparse() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 8, generator=generator) * (torch.rand(50, 8, generator=generator) < 0.3)


def test_sparse_and_dense_designs_give_the_same_numbers() -> None:
    x = _sparse()
    x[:, 7] = 3.0  # a column that never varies
    sparse, dense = Design.of(SparseCodes.from_dense(x)), Design.of(x)
    y = np.arange(50) % 3 == 0
    assert sparse.is_sparse and not dense.is_sparse
    for name in ("mean", "std", "varies"):
        assert np.allclose(getattr(sparse, name)(), getattr(dense, name)()), name
    assert np.allclose(sparse.class_difference(y), dense.class_difference(y))
    assert np.allclose(sparse.columns([6, 1]), dense.columns([6, 1]))
    assert np.allclose(sparse.rows([4, 2]).values.toarray(), dense.rows([4, 2]).values)
    assert np.allclose(sparse.scaled(dense.std()).toarray(), dense.scaled(dense.std()))
    assert dense.std()[7] == 1 and not dense.varies()[7]


def test_a_probe_of_sparse_codes_is_the_probe_of_their_matrix() -> None:
    x, y = _sparse(), np.arange(50) % 2 == 0
    one = coefficients(SparseCodes.from_dense(x), y, C=1.0)
    other = coefficients(x, y, C=1.0)
    assert np.allclose(one[0], other[0], atol=1e-3)
    assert one[1] == pytest.approx(other[1], abs=1e-3)


def test_a_probe_finds_the_planted_column_and_says_so_in_its_own_units() -> None:
    x, y = _data()
    probe = fit_probe(x, y)
    assert np.abs(probe.weights).argmax() == 2
    again = fit_probe(x * 100 + 7, y)
    assert np.allclose(again.weights * 100, probe.weights, rtol=1e-3)
    assert np.allclose(again.scores(x * 100 + 7), probe.scores(x), atol=1e-3)
    assert probe.cross_validated is not None and probe.cross_validated > 0.85


def test_turning_columns_around_turns_their_weights_around() -> None:
    x, y = _data()
    flip = np.array([1.0, -1, -1, 1, -1, 1])
    probe, turned = fit_probe(x, y), fit_probe(x * flip, y)
    assert np.allclose(turned.weights, probe.weights * flip, atol=1e-4)


def test_a_probe_of_some_columns_reads_only_those() -> None:
    x, y = _data()
    probe = fit_probe(x, y, columns=[4, 2])
    assert probe.columns.tolist() == [2, 4]
    other = x.copy()
    other[:, [0, 1, 3, 5]] = 99
    assert np.array_equal(probe.scores(other), probe.scores(x))
    assert probe.direction()[[0, 1, 3, 5]].tolist() == [0, 0, 0, 0]
    assert np.allclose(x @ probe.direction() + probe.bias, probe.scores(x))
    with pytest.raises(ShapeError, match="reads 6 columns"):
        probe.scores(x[:, :3])


def test_the_strength_is_chosen_without_looking_at_the_folds_labels_twice() -> None:
    # Labels that are the group's own: only a probe that saw the group can know them. With groups
    # whole, no strength is better than chance; with groups torn apart, all look perfect.
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    x = np.eye(40)[groups] + 0.01 * generator.standard_normal((320, 40))
    y = (generator.permutation(40) % 2 == 0)[groups]
    torn, whole = fit_probe(x, y), fit_probe(x, y, groups=groups)
    assert torn.cross_validated is not None and torn.cross_validated > 0.99
    assert whole.cross_validated is not None and whole.cross_validated < 0.7


def test_a_division_keeps_groups_whole_and_classes_at_their_shares() -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 120, 1000)
    y = generator.random(1000) < 0.3
    train, test = divide(y, groups, test_share=0.3, seed=3)
    assert not set(groups[train]) & set(groups[test])
    assert sorted(np.concatenate([train, test])) == list(range(1000))
    assert len(test) == pytest.approx(300, abs=30)
    assert y[test].mean() == pytest.approx(0.3, abs=0.04)
    assert not np.array_equal(divide(y, groups, seed=4).test, divide(y, groups, seed=3).test)
    for fold in folds(y, groups, 5):
        assert not set(groups[fold.train]) & set(groups[fold.test])


def test_a_division_without_groups_is_stratified_exactly() -> None:
    y = np.arange(100) < 20
    train, test = divide(y, test_share=0.25)
    assert (len(test), int(y[test].sum()), len(train)) == (25, 5, 75)


def test_classes_that_cannot_be_on_both_sides_are_refused() -> None:
    with pytest.raises(DataError, match="would lack a class"):
        divide(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
    assert folds(np.array([1, 0, 0, 0]), None, 5) == []


def test_balanced_rows_and_group_numbers() -> None:
    y = np.array([0] * 30 + [1] * 7 + [2] * 12)
    rows = balanced(y, seed=0)
    assert np.bincount(y[rows]).tolist() == [7, 7, 7]
    assert np.bincount(y[balanced(y, 9)]).tolist() == [3, 3, 3]
    assert group_numbers(["x", ("y", 1), "x"]).tolist() == [0, 1, 0]


def test_unusable_inputs_are_refused() -> None:
    x, y = _data()
    with pytest.raises(DataError, match="one class"):
        fit_probe(x, np.ones(N))
    with pytest.raises(DataError, match="0 and 1"):
        fit_probe(x, np.where(y, 1, -1))
    with pytest.raises(ShapeError, match="labels"):
        fit_probe(x, y[:-1])
    with pytest.raises(ConfigError, match="0 columns"):
        fit_probe(x, y, columns=[])
    bad = x.copy()
    bad[3, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        fit_probe(bad, y)


@pytest.mark.parametrize("sparse", [False, True])
def test_more_columns_than_rows_give_the_probe_of_least_weights_as_directly_fitted(
    sparse: bool,
) -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 90, generator=generator)
    x *= torch.rand(40, 90, generator=generator) < 0.4
    y = np.arange(40) % 2 == 0
    design = Design.of(SparseCodes.from_dense(x) if sparse else x)
    weights, bias = coefficients(design, y, 0.3)
    std, mean = design.std(), np.zeros(90) if sparse else design.mean()
    direct = LogisticRegression(C=0.3, class_weight="balanced", tol=1e-8, max_iter=5000)
    direct.fit((x.double().numpy() - mean) / std, y)
    assert np.allclose(weights * std, direct.coef_[0], atol=2e-3)
    assert bias + float(mean @ weights) == pytest.approx(
        float(np.ravel(direct.intercept_)[0]), abs=2e-3
    )
