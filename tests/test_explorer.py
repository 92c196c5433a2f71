"""The explorer's pages, run in Streamlit's own harness: each opens, and its main action works."""

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.explorer_runs import HOSTILE, make_runs

APP = Path(__file__).parent.parent / "app"
VIEWS = sorted(path.name for path in (APP / "views").glob("*.py"))
NEEDS_MORE = {"data.py", "geometry.py"}
"""Pages of what is made by a command of its own; each has tests of its own."""
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
    if view in NEEDS_MORE:
        assert page_html(test).count("sl-empty") == 1 and test.code, "it says what makes it"
    else:
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


def test_a_prompts_token_says_what_its_latents_add_to_the_next_one(app):
    html = page_html(app("prompt.py", run="topk", text="the old ship came home", token=3))
    assert "Direct effect through the frozen final norm" in html
    assert "what the dictionary misses" in html and "logits" in html
    shorter = app("prompt.py", run="topk", text="the", token=30, next=9999)
    assert_fine(shorter)
    assert "sl-empty" not in page_html(shorter)


def count_of(test: AppTest) -> int:
    found = [line for line in page_html(test).splitlines() if "pick one to open it" in line]
    return int(found[0].split(">")[1].split()[0])


def test_what_is_chosen_on_the_map_filters_the_table(app, runs):
    from saelab.atlas import Atlas

    with_map = Atlas.open(runs / "topk" / "atlas")
    rows = with_map.sql("SELECT latent FROM decoder_map WHERE x > 0 AND y > 0")
    # corners are x.y on the grid of the map, which goes from -10,000 to 10,000
    test = app("latents.py", run="topk", area="0.0_10600.0_10600.10600_0.10600")
    assert_fine(test)
    assert 0 < count_of(test) == len(rows) < 48
    next(one for one in test.button if one.key == "let go").click().run()
    assert count_of(test) == 48
    assert count_of(app("latents.py", run="topk", near=7)) == 25
    assert "is not an outline" in page_html(app("latents.py", run="topk", area="0.0_<b>"))


def test_an_atlas_without_a_map_says_which_command_makes_it(app, runs):
    import json

    manifest = runs / "abs_topk" / "atlas" / "atlas.json"
    whole = manifest.read_text()
    value = json.loads(whole)
    del value["map"], value["files"]["decoder_map.parquet"]
    manifest.write_text(json.dumps(value))
    try:
        test = app("latents.py", run="abs_topk")
        assert_fine(test)
        assert f"saelab map {runs / 'abs_topk'}" in [one.value for one in test.code]
    finally:
        manifest.write_text(whole)


def test_latents_are_pushed_and_both_texts_shown(app):
    address = {"push": "3:6,5:-4", "text": "the old ship", "tokens": "8", "how": "add"}
    test = app("steering.py", run="abs_topk", **address)
    assert_fine(test)
    html = page_html(test)
    assert "As it is" in html and "Steered" in html and "The next token" in html
    assert "Push(sae, {3: 6, 5: -4})" in test.code[0].value
    test.text_input(key="add").set_value("9").run()
    assert "9:" in str(test.query_params["push"])
    next(one for one in test.button if one.key == "without 3").click().run()
    assert_fine(test)
    assert "3:6" not in str(test.query_params["push"])


def test_pushing_by_nothing_changes_nothing(app):
    html = page_html(app("steering.py", run="topk", push="3:0", text="the old ship", tokens="8"))
    assert "KL 0 nats" in html and "<mark>" not in html


def test_the_cost_of_steering_is_measured_beside_controls(app):
    test = app("steering.py", run="topk", push="3:6", text="the old ship", tokens="5")
    test.text_input(key="words 3").set_value("war, ship")
    next(one for one in test.button if one.label == "Measure effect and cost").click().run()
    assert_fine(test)
    assert "Overall score of 0 to 2" in page_html(test)
    assert "for the controls" in page_html(test)


@pytest.mark.parametrize("push", ["99:1", "x", "1:nan", "1:1e9", "-1:2", "1", "<b>:1"])
def test_a_push_that_means_nothing_is_explained(app, push):
    test = app("steering.py", run="topk", push=push)
    assert_fine(test)
    assert "must name latents from 0 to 47" in page_html(test)


def test_words_that_differ_are_marked_and_never_interpreted():
    from explorer.text import differing

    one, other = differing("the <b>old</b> ship\nsank", "the <i>new</i> ship\nsank")
    assert one == "the <mark>&lt;b&gt;old&lt;/b&gt;</mark> ship<br>sank"
    assert other == "the <mark>&lt;i&gt;new&lt;/i&gt;</mark> ship<br>sank"
    assert differing("same text", "same text") == ("same text", "same text")


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
