"""Runs compared at the same sparsity: the right points, means and frontier, and a safe page."""

import json
import re
from pathlib import Path

import pytest

from saelab.errors import ConfigError
from saelab.pareto import Pareto, Point, pareto
from saelab.pareto.figures import Curve, frontier_figure
from saelab.pareto.page import pareto_page, save_pareto
from tests.test_sweeps import CONFIG, SmallRecipe, members, store, sweep

pytestmark = pytest.mark.filterwarnings("ignore:.*latents")


def point(l0: float, fvu: float, **settings) -> Point:
    given = {
        "run": f"run-{l0:g}-{fvu:g}",
        "family": "topk",
        "d_sae": 64,
        "hook": "blocks.0.hook_resid_post",
        "setting": f"{l0:g}",
        "seed": 0,
        "tokens": 1000,
        "dead_share": 0.0,
        "ce_recovered_zero": None,
        "ce_recovered_mean": None,
        "held_out": True,
    }
    return Point(l0=l0, fvu=fvu, **{**given, **settings})


def test_a_curve_joins_the_means_over_seeds_from_sparse_to_dense() -> None:
    found = Pareto(
        [
            point(32.0, 0.10, setting="k=32", seed=0),
            point(30.0, 0.20, setting="k=32", seed=1),
            point(8.0, 0.5, setting="k=8"),
            point(8.0, 0.4, setting="k=8", d_sae=128),
        ]
    )
    curves = found.curves("fvu")
    hook = "blocks.0.hook_resid_post"
    assert curves[("topk", 64, hook)] == [(8.0, 0.5), (31.0, pytest.approx(0.15))]
    assert curves[("topk", 128, hook)] == [(8.0, 0.4)]
    assert found.curves("ce_recovered_mean") == {}


def test_the_frontier_is_what_nothing_at_its_hook_point_beats_in_both() -> None:
    best = [point(8.0, 0.4), point(16.0, 0.3)]
    beaten = [point(16.0, 0.35), point(20.0, 0.3)]
    elsewhere = point(40.0, 0.9, hook="blocks.1.hook_resid_post")
    assert Pareto([*best, *beaten, elsewhere]).frontier == [*best, elsewhere]


def test_a_sweep_is_read_with_its_families_seeds_and_numbers(tmp_path: Path) -> None:
    recipes = [SmallRecipe(k=k, seed=seed, hook="early") for k in (2, 4) for seed in (0, 1)]
    result = sweep([*recipes, members()[2]], store(), tmp_path / "sweep")
    name = next(iter(result.results))
    numbers = {"l0": 1.75, "fvu": 0.125, "dead_share": 0.5, "ce_recovered_mean": 0.75}
    evaluation = {"format": "saelab-evaluation", "version": 1, "summary": numbers}
    (tmp_path / "sweep" / name / "evaluation.json").write_text(json.dumps(evaluation))
    found = pareto([tmp_path / "sweep"])
    by_run = {one.run: one for one in found.points}
    assert set(by_run) == set(result.results)
    assert (by_run[name].l0, by_run[name].fvu, by_run[name].held_out) == (1.75, 0.125, True)
    assert (by_run[name].family, by_run[name].seed, by_run[name].d_sae) == ("small", 0, 48)
    late = by_run["late"]
    assert (late.family, late.hook, late.held_out) == ("batchtopk", "late", False)
    assert late.fvu == result.results["late"].metrics[-1]["fvu"]
    assert {len(means) for means in found.curves("fvu").values()} == {2, 1}
    assert late.tokens == CONFIG.tokens


def test_the_page_is_self_contained_and_escapes_what_folders_are_called(tmp_path: Path) -> None:
    hostile = point(4.0, 0.6, run="</script><img src=x onerror=alert(1)>", ce_recovered_mean=0.5)
    found = Pareto([hostile, point(8.0, 0.5, held_out=False, tokens=2000)])
    page = save_pareto(found, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "default-src 'none'" in text and not re.search(r"<(script|link|img)[^>]+src=", text)
    assert "1 of 2 runs have not been evaluated" in text
    assert "different budgets, 1,000 to 2,000 tokens" in text
    assert json.loads((tmp_path / "pareto.json").read_text())["runs"][0]["frontier"] is True


def test_a_page_leaves_out_what_was_not_measured() -> None:
    text = pareto_page(Pareto([point(4.0, 0.6)]))
    assert "predictions at the same sparsity" not in text and "misses least" in text


def test_the_figure_draws_every_run_and_colors_families_apart() -> None:
    curves = [
        Curve(family="topk", size=64, means=[(2.0, 0.5)], points=[(2.0, 0.5, "r")]),
        Curve(family="topk", size=128, means=[(2.0, 0.4)], points=[(2.0, 0.4, "s")]),
        Curve(family="relu", size=64, means=[(2.0, 0.6)], points=[(2.0, 0.6, "t")]),
    ]
    drawn = frontier_figure(curves, "FVU", share=False).to_plotly_json()["data"]
    marks = [trace for trace in drawn if trace["mode"] == "markers"]
    marks, legend = marks[:3], [trace.get("name") for trace in drawn if trace.get("name")]
    assert [list(trace["y"]) for trace in marks] == [[0.5], [0.4], [0.6]]
    assert legend == ["topk", "relu", "64 latents", "128 latents"]
    colors, sizes, symbols = (
        [trace["marker"][key] for trace in marks] for key in ("color", "size", "symbol")
    )
    assert colors[0] == colors[1] != colors[2] and symbols[0] == symbols[1] != symbols[2]
    assert sizes[1] > sizes[0] == sizes[2]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has both an L0 and an FVU. Name a folder of runs"):
        pareto([tmp_path])
