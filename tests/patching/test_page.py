"""The page says what was measured, doubts what a null does as well, and shows text as text."""

import json
from pathlib import Path
from typing import Any

import pytest

from saelab.errors import ConfigError, DataError
from saelab.patching import Comparison, Cost, Method, comparison_page, save_comparison_page
from saelab.patching.curves import Curve, Point
from saelab.patching.figures import comparison_figure


def method(name: str, values: list[float], **more: Any) -> Method:
    points = (tuple(Point(4**n, v, 1 - v) for n, v in enumerate(values)),)
    return Method(name=name, curves=[Curve(name, 64, one) for one in points], **more)


def comparison(**changes: Any) -> Comparison:
    null = Method(
        name="random circuit",
        curves=[
            Curve("r", 64, tuple(Point(4**n, v, None) for n, v in enumerate(values)))
            for values in ([0.0, 0.1, 0.2, 1.0], [0.0, 0.3, 0.2, 1.0])
        ],
        is_null=True,
    )
    settings: dict[str, Any] = {
        "behavior": "<b>agreement</b>",
        "items": "components",
        "n_items": 64,
        "model": "tiny",
        "whole": 3.0,
        "nothing": -2.0,
        "unit": "logits",
        "stand_in": "patch",
        "n_discovery": 4,
        "n_test": 5,
        "methods": [
            method("EAP", [0.2, 0.9, 0.95, 1.0], cost=Cost(8, 4, 1.25), correlation=0.5),
            null,
        ],
    }
    return Comparison(**settings | changes)


def test_a_row_has_correlation_area_sizes_and_cost() -> None:
    columns, rows = comparison().table()
    # Trapezoids over equal steps: (0.55 + 0.925 + 0.975) / 3.
    assert rows[0] == ["EAP", "+0.50", "0.82", "4", "4", "+0.10", "8", "4", "1.2"]
    assert rows[1] == ["random circuit", "", "0.30 (0.27 to 0.33)", "64", "64", *[""] * 4]
    assert len(columns) == len(rows[0])
    lines = comparison().markdown()
    assert lines[1].count("---") == len(columns)
    assert lines[2].startswith("| EAP | +0.50 | 0.82 |")


def test_a_curve_that_falls_again_has_not_arrived() -> None:
    found = comparison(methods=[method("EAP", [0.2, 0.95, 0.5, 1.0])])
    assert found.table()[1][0][3:5] == ["64", "64"]


def test_the_page_shows_both_curves_and_hostile_text_as_text() -> None:
    page = comparison_page([comparison()])
    assert "&lt;b&gt;agreement" in page
    assert "<b>agreement" not in page
    assert "How small a circuit is enough?" in page
    assert "What is left without it?" not in page  # the null's rest was not measured
    assert "ranked no better" not in page


def test_a_method_that_a_null_equals_is_doubted() -> None:
    bad = comparison()
    bad = comparison(methods=[method("EAP", [0.0, 0.1, 0.2, 1.0]), bad.methods[1]])
    assert "ranked no better than the best draw of a null" in comparison_page([bad])
    alone = comparison(methods=[method("EAP", [0.0, 0.1, 0.2, 1.0])])
    assert "no null was measured" in comparison_page([alone])


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = save_comparison_page([comparison()], tmp_path / "circuits.html")
    assert path.read_text().startswith("<!doctype html>")
    found = comparison().save(tmp_path / "one.json")
    read = json.loads(found.read_text())
    assert read["methods"][0]["curves"][0]["points"][1]["faithfulness"] == 0.9


def test_nulls_are_drawn_with_their_range() -> None:
    traces = comparison_figure(comparison()).to_dict()["data"]
    names = [trace.get("name") for trace in traces]
    assert "EAP" in names
    assert "random circuit (null)" in names
    assert any(trace.get("fill") == "toself" for trace in traces)


def test_a_page_of_nothing_and_a_method_of_uneven_curves_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        comparison_page([])
    one = Curve("a", 4, (Point(1, 0.0, None),))
    two = Curve("a", 4, (Point(2, 0.0, None),))
    with pytest.raises(ConfigError, match="same sizes"):
        Method(name="a", curves=[one, two])
