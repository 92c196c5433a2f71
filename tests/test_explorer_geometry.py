"""The page of geometry: every part opens, the address keeps the choice, nothing is believed."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from tests.explorer_runs import HOSTILE, make_surveyed_runs
from tests.test_explorer import assert_fine, page_html
from tests.test_explorer_browser import (
    BROWSER,
    ROOT,
    SLOW,
    browser,  # noqa: F401 - a fixture
    keep,
    settled,
    visit,  # noqa: F401 - a fixture
)

PARTS = ("Lobes", "Crystals", "Families", "Galaxy")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return make_surveyed_runs(tmp_path_factory.getbasetemp())


@pytest.fixture
def app(runs, monkeypatch):
    """The page of geometry at an address."""
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(runs)])

    def opened(**parameters: object) -> AppTest:
        test = AppTest.from_file(str(ROOT / "app" / "streamlit_app.py"), default_timeout=90.0)
        test.query_params["run"] = str(parameters.get("run", "topk"))
        test.run()
        test.switch_page("views/geometry.py")
        for name, value in {"run": "topk", **parameters}.items():
            test.query_params[name] = str(value)
        return test.run()

    return opened


@pytest.mark.parametrize(
    ("run", "part"), [*(("topk", part) for part in PARTS), ("abs_topk", "Lobes")]
)
def test_every_part_opens_on_every_kind_of_dictionary(app, run, part):
    test = app(run=run, part=part)
    assert_fine(test)
    html = page_html(test)
    assert "sl-empty" not in html, html
    assert "what chance gives" in html
    assert part != "Families" or "codes moved apart" in html
    for hostile in HOSTILE[:4]:
        assert hostile not in html
    assert "\u202e" not in html and "\x00" not in html
    charts = test.get("plotly_chart")
    assert charts or part == "Families"


def test_a_lobe_in_the_address_is_shown_with_its_latents_beside_chance(app):
    test = app(lobes=3, lobe=1)
    assert_fine(test)
    html = page_html(test)
    assert "Its most characteristic latents" in html and "with lobes shuffled" in html
    assert "What is each about?" not in html
    assert "is not a number from 0 to 2" in page_html(app(lobes=3, lobe=9))


def test_a_run_that_was_not_surveyed_says_which_command_does_it(app, runs):
    test = app(run="wide")
    assert_fine(test)
    assert "was not measured yet" in page_html(test)
    assert f"saelab geometry {runs / 'wide'}" in [one.value for one in test.code]


def test_families_that_were_not_looked_for_name_the_wider_run(app):
    # The wider dictionary lies in this folder: the command for the other run names it.
    other = app(run="abs_topk", part="Families")
    assert any("--wider" in one.value and one.value.endswith("wide") for one in other.code)


def test_a_survey_that_was_altered_is_one_message(app, runs):
    path = runs / "abs_topk" / "geometry" / "numbers.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    try:
        test = app(run="abs_topk")
        assert_fine(test)
        assert "is not the file that was written" in page_html(test)
    finally:
        path.write_bytes(whole)


def test_a_cell_that_a_spreadsheet_would_run_is_quoted():
    from explorer.exports import as_csv

    rows = list(csv.DictReader(io.StringIO(as_csv([{"a": "=1+1", "b": -2}, {"a": "x,y", "b": 1}]))))
    assert rows == [{"a": "'=1+1", "b": "-2"}, {"a": "x,y", "b": "1"}]


@pytest.fixture(scope="module")
def address(runs) -> Iterator[str]:
    """The explorer, running."""
    yield from serve(runs)


def serve(runs: Path) -> Iterator[str]:
    import socket
    import subprocess
    import time
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "saelab", "explore", str(runs), "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2):
                    break
            except OSError:
                assert server.poll() is None, "the explorer stopped"
                time.sleep(0.5)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(120)


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium was found")


@needs_browser
@pytest.mark.parametrize(
    "path", ["geometry?run=topk", "geometry?run=topk&part=Crystals", "data?run=topk"]
)
def test_every_part_fits_the_window_in_the_dark(visit, path):  # noqa: F811
    page = visit(f"/{path}", "dark")
    keep(page, path.replace("?", "_").replace("&", "_").replace("=", "_"))
    assert page.locator('[data-testid="stException"], [data-testid="stAlert"]').count() == 0
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 1, "the page scrolls sideways at 1280 px"


@needs_browser
def test_a_bar_chooses_its_lobe_and_the_numbers_are_saved(visit, tmp_path):  # noqa: F811
    page = visit("/geometry?run=topk&lobes=2")
    bar = page.locator(".js-plotly-plot .bars .point path").first
    expect(bar).to_be_visible()
    settled(page)
    box = bar.bounding_box()
    # What takes the click is a layer above the bar.
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.wait_for_url("**lobe=0**", timeout=SLOW)
    expect(page.get_by_role("heading", name="Lobe 0")).to_be_visible()
    settled(page)
    with page.expect_download(timeout=SLOW) as waiting:
        page.get_by_role("button", name="Numbers as CSV").last.click()
    waiting.value.save_as(tmp_path / "lobes.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "lobes.csv").read_text())))
    assert [row["lobe"] for row in rows] == ["0", "1"]
    assert sum(int(row["latents"]) for row in rows) > 4
