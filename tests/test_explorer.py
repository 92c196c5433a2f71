"""The explorer's pages, run in Streamlit's own harness: each opens, and its main action works."""

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.explorer_runs import HOSTILE, make_runs

APP = Path(__file__).parent.parent / "app"
VIEWS = sorted(path.name for path in (APP / "views").glob("*.py"))
SECONDS = 90.0
"""A page's first run opens an atlas and, for a prompt, a model."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def app(runs, monkeypatch):
    """The explorer on the runs, at an address."""
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(runs)])

    def opened(view: str, **parameters: object) -> AppTest:
        test = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=SECONDS)
        for name, value in parameters.items():
            test.query_params[name] = str(value)
        test.run()
        if view != "runs.py":
            test.switch_page(f"views/{view}")
            for name, value in parameters.items():
                test.query_params[name] = str(value)
            test.run()
        return test

    return opened


def page_html(test: AppTest) -> str:
    """Everything a page put out as HTML."""
    bodies = [str(one.proto.body) for one in test.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style>"))


def assert_fine(test: AppTest) -> None:
    assert not test.exception, [one.message for one in test.exception]
    assert not test.error, [one.value for one in test.error]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("run", ["topk", "abs_topk"])
def test_every_page_opens_on_every_kind_of_dictionary(app, view, run):
    test = app(view, run=run)
    assert_fine(test)
    assert "sl-empty" not in page_html(test), page_html(test)


@pytest.mark.parametrize("view", VIEWS)
def test_text_of_models_and_corpora_is_shown_and_never_interpreted(app, view):
    parameters = {"latent": 0} if view == "latent.py" else {}
    html = page_html(app(view, run="topk", **parameters))
    for hostile in HOSTILE[:4]:
        assert hostile not in html
    assert "\u202e" not in html and "\x00" not in html


def test_the_page_of_a_latent_shows_its_examples_and_both_sides_of_a_signed_one(app):
    html = page_html(app("latent.py", run="abs_topk", latent=3))
    assert "Above zero" in html and "Below zero" in html
    assert html.count("sl-examples") >= 1
    assert "data-tip=" in html and "activation" in html


def test_a_label_and_a_note_are_kept(app, runs):
    test = app("latent.py", run="topk", latent=5)
    test.text_input(key="own label 5").set_value("ships and **war**")
    test.text_area(key="own note 5").set_value("a note")
    next(one for one in test.button if one.label == "Save").click()
    test.run()
    assert_fine(test)
    from saelab.atlas import Atlas

    card = Atlas.open(runs / "topk" / "atlas").latent(5)
    assert card.label == "ships and **war**"
    assert card.annotations[0].note == "a note"


def test_a_search_for_a_number_opens_that_latent(app):
    test = app("runs.py", run="topk")
    test.text_input(key="search").set_value("7").run()
    assert_fine(test)
    assert test.query_params["latent"] == ["7"] or test.query_params["latent"] == "7"


def test_a_prompt_is_read_token_by_token(app):
    test = app("prompt.py", run="topk", text="the old ship came home")
    assert_fine(test)
    html = page_html(test)
    assert "What the model expects next" in html and "What the dictionary misses" in html


@pytest.mark.parametrize("address", [{"latent": "10000000"}, {"latent": "x"}, {"latent": "-1"}])
def test_an_address_that_means_nothing_is_explained(app, address):
    test = app("latent.py", run="topk", **address)
    assert_fine(test)
    assert "is not a number from 0 to 47" in page_html(test)


@pytest.mark.parametrize("run", ["../..", "/etc", "nowhere", "activations/../topk/../../.."])
def test_an_address_never_leads_out_of_the_folder(app, run):
    test = app("latent.py", run=run)
    assert_fine(test)
    assert test.query_params["run"] not in (run, [run])


def test_without_runs_the_first_page_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(tmp_path)])
    test = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=SECONDS).run()
    assert_fine(test)
    assert "There are no runs" in page_html(test)
    assert "saelab quickstart" in test.code[0].value


def test_the_doctor_knows_an_atlas_and_what_is_wrong_with_it(runs, tmp_path):
    import shutil

    from saelab.doctor import check_folder

    folder = shutil.copytree(runs / "topk" / "atlas", tmp_path / "atlas")
    (found,) = check_folder(folder)
    assert found.status == "ok" and found.text.startswith("48 latents on 2,868 tokens")
    (folder / "examples.parquet").write_bytes(b"not a table")
    (found,) = check_folder(folder)
    assert found.status == "broken" and "examples.parquet" in found.text
