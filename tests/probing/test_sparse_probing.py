"""Sparse probes: planted columns, the suppressor, exact best subsets, and controls."""

import itertools

import numpy as np
import pytest
import torch

from saelab.errors import ConfigError
from saelab.probing.linear import fit_probe
from saelab.probing.measures import score
from saelab.probing.optimal import best_support, candidates, support_objective
from saelab.probing.ranking import adaptive_thresholding, mean_difference, top
from saelab.probing.sparse_probing import Method, ProbeConfig, choose_columns, sparse_probe
from saelab.probing.splitting import Division, divide
from saelab.sparse_codes import SparseCodes

QUICK = ProbeConfig(strengths=(0.1, 1.0), n_folds=3, n_controls=2, n_resamples=100)


def _suppressor(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """x0 = y + noise, x1 = the same noise, x2 = y / 2 + other noise."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, n)
    noise = generator.standard_normal(n)
    x2 = 0.5 * y + generator.standard_normal(n)
    return np.stack([y + noise, noise, x2], 1), y


@pytest.mark.parametrize(
    ("method", "wanted", "f1"),
    [("mean_difference", [0, 2], 0.73), ("adaptive", [0, 1], 1.0), ("optimal", [0, 1], 1.0)],
)
def test_only_a_joint_method_finds_a_suppressor(
    method: Method, wanted: list[int], f1: float
) -> None:
    x, y = _suppressor()
    train, test = divide(y)
    columns = choose_columns(x[train], y[train], 2, method)
    assert columns.tolist() == wanted
    probe = fit_probe(x[train], y[train], columns=columns)
    assert score(probe.scores(x[test]), y[test]).f1 == pytest.approx(f1, abs=0.04)


def test_the_best_support_is_the_one_that_trying_all_finds() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((120, 9))
    y = (x[:, 1] - x[:, 4] + 0.5 * x[:, 7] + generator.standard_normal(120)) > 0
    x = x @ (np.eye(9) + 0.3 * generator.standard_normal((9, 9)))
    found = best_support(x, y, 3)
    every = {
        columns: support_objective(x, y, np.array(columns))
        for columns in itertools.combinations(range(9), 3)
    }
    best = min(every, key=lambda columns: every[columns])
    assert tuple(found.columns) == best
    assert found.objective == pytest.approx(every[best], rel=1e-6)
    assert found.proven and found.n_solved < len(every) / 2
    assert found.bound <= every[best] * (1 + 1e-9)


def test_no_support_is_below_the_bound_even_when_time_runs_out() -> None:
    generator = np.random.default_rng(2)
    x = generator.standard_normal((100, 12))
    y = generator.random(100) < 0.5
    stopped = best_support(x, y, 4, seconds=0.0)
    assert not stopped.proven and stopped.gap > 0
    for _ in range(20):
        columns = generator.choice(12, 4, replace=False)
        assert support_objective(x, y, columns) >= stopped.bound


def test_a_larger_best_support_never_has_a_worse_objective() -> None:
    generator = np.random.default_rng(3)
    x = generator.standard_normal((150, 8))
    y = x[:, :4].sum(1) + generator.standard_normal(150) > 0
    objectives = [best_support(x, y, k).objective for k in (1, 2, 3, 4)]
    assert objectives == sorted(objectives, reverse=True)


def test_candidates_hold_the_suppressor_that_the_mean_difference_leaves_out() -> None:
    x, y = _suppressor()
    generator = np.random.default_rng(4)
    weak = 0.3 * y[:, None] + generator.standard_normal((len(y), 20))
    wide = np.concatenate([x, weak], 1)
    assert 1 not in top(mean_difference(wide, y), 6)
    assert {0, 1} <= set(candidates(wide, y, 6).tolist())


def test_a_planted_latent_is_found_by_every_method_at_k_1() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(300, 30, generator=generator)
    latents *= torch.rand(300, 30, generator=generator) < 0.1
    y = np.arange(300) % 2
    latents[:, 17] = torch.tensor(y) * (0.5 + torch.rand(300, generator=generator))
    codes, division = SparseCodes.from_dense(latents), divide(y)
    for method in ("mean_difference", "adaptive", "optimal"):
        config = ProbeConfig(method=method, strengths=(1.0,), n_controls=1, n_resamples=50)
        report = sparse_probe(codes, y, 1, division, config=config)
        assert report.probe.columns.tolist() == [17]
        assert report.test.f1 == report.test.auroc == 1.0
        assert report.interval.low == 1.0


def test_an_exclusive_or_of_two_latents_is_not_found_by_a_linear_probe() -> None:
    generator = np.random.default_rng(5)
    x = generator.integers(0, 2, (600, 2)).astype(float)
    y = x[:, 0] != x[:, 1]
    assert sparse_probe(x, y, 2, divide(y), config=QUICK).test.auroc < 0.75


def test_a_loud_column_that_says_nothing_is_not_chosen() -> None:
    generator = np.random.default_rng(6)
    y = np.arange(500) % 2
    loud, true = 100 * generator.standard_normal(500), y + 0.5 * generator.standard_normal(500)
    x = np.stack([loud, true, np.full(500, 1e9)], 1)
    assert np.abs(x[y == 1].mean(0) - x[y == 0].mean(0))[0] > 1  # unscaled it would win
    assert choose_columns(x, y, 1).tolist() == [1]


def test_turning_the_basis_hurts_one_column_and_not_all_of_them() -> None:
    generator = np.random.default_rng(7)
    y = np.arange(500) % 2
    x = generator.standard_normal((500, 16))
    x[:, 3] += 3 * y
    turn, _ = np.linalg.qr(generator.standard_normal((16, 16)))
    division = divide(y)
    one = sparse_probe(x, y, 1, division, config=QUICK)
    turned = sparse_probe(x @ turn, y, 1, division, config=QUICK)
    assert one.test.auroc > 0.95 and turned.test.auroc < one.test.auroc - 0.05
    full = [sparse_probe(v, y, None, division, config=QUICK) for v in (x, x @ turn)]
    assert full[0].test.auroc == pytest.approx(full[1].test.auroc, abs=0.01)
    assert max(one.controls.random) < one.test.auroc
    assert full[0].controls.random == ()


def test_controls_say_what_chance_says() -> None:
    generator = np.random.default_rng(8)
    y = generator.random(800) < 0.25
    x = generator.standard_normal((800, 40))
    x[:, 0] += 4 * y
    config = ProbeConfig(strengths=(1.0,), n_controls=6, n_resamples=100)
    report = sparse_probe(x, y, 2, divide(y), config=config)
    assert report.test.auroc > 0.97
    assert abs(np.mean(report.controls.shuffled) - 0.5) < 0.12
    share = y[divide(y).test].mean()
    assert report.controls.majority_accuracy == pytest.approx(1 - share)
    assert report.controls.majority_f1 == pytest.approx(2 * share / (1 + share))
    assert (report.k, report.width) == (2, 40)


def test_columns_are_never_chosen_by_test_rows() -> None:
    generator = np.random.default_rng(9)
    y = np.arange(200) % 2
    x = generator.standard_normal((200, 10))
    division = divide(y, seed=1)
    x[division.test, 5] = 50 * y[division.test]  # a giveaway, in test rows only
    x[division.train, 2] += y[division.train]
    before = sparse_probe(x, y, 1, division, config=QUICK)
    assert before.probe.columns.tolist() == [2]


def test_signed_latents_turned_around_give_the_same_probe() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator) * (torch.rand(200, 12, generator=generator) < 0.3)
    y = (x[:, 4] < -0.2).numpy()
    flip = torch.where(torch.arange(12) % 2 == 0, -1.0, 1.0)
    division = divide(y)
    reports = [
        sparse_probe(SparseCodes.from_dense(v), y, 2, division, config=QUICK) for v in (x, x * flip)
    ]
    assert reports[0].probe.columns.tolist() == reports[1].probe.columns.tolist()
    assert reports[0].test.auroc == pytest.approx(reports[1].test.auroc, abs=1e-6)
    assert reports[0].controls.shuffled == pytest.approx(reports[1].controls.shuffled, abs=1e-6)


def test_adaptive_supports_are_nested() -> None:
    generator = np.random.default_rng(10)
    y = np.arange(300) % 2
    x = generator.standard_normal((300, 40)) + 0.2 * y[:, None]
    found = adaptive_thresholding(x, y, largest=32)
    levels = sorted(found)
    assert levels == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32]
    for fewer, more in itertools.pairwise(levels):
        assert set(found[fewer]) < set(found[more])
        assert len(found[fewer]) == fewer


def test_leaks_and_impossible_widths_are_refused() -> None:
    x, y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    with pytest.raises(ConfigError, match="5 rows are on both sides"):
        sparse_probe(x, y, 1, Division(np.arange(15), np.arange(10, 20)))
    with pytest.raises(ConfigError, match="groups are on both sides"):
        groups = np.arange(20) // 3
        sparse_probe(x, y, 1, Division(np.arange(10), np.arange(10, 20)), groups=groups)
    with pytest.raises(ConfigError, match="has 3 columns"):
        sparse_probe(x, y, 4, divide(y))
    with pytest.raises(ConfigError, match="control"):
        ProbeConfig(n_controls=0)
