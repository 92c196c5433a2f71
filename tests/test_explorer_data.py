"""The page of data: planted differences come first, searches rank, the address keeps the choice."""

import sys
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from saelab.errors import ConfigError
from tests.explorer_runs import HOSTILE, make_surveyed_runs
from tests.test_explorer import assert_fine, page_html

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return make_surveyed_runs(tmp_path_factory.getbasetemp())


@pytest.fixture
def app(runs, monkeypatch):
    """The page of data at an address."""
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(runs)])

    def opened(**parameters: object) -> AppTest:
        test = AppTest.from_file(str(ROOT / "app" / "streamlit_app.py"), default_timeout=90.0)
        test.query_params["run"] = str(parameters.get("run", "topk"))
        test.run()
        test.switch_page("views/data.py")
        for name, value in {"run": "topk", **parameters}.items():
            test.query_params[name] = str(value)
        return test.run()

    return opened


@pytest.mark.parametrize(
    "address",
    [
        {"of": "letters", "how": "by author"},
        {"part": "Search", "want": "3,5", "without": "7"},
        {"run": "abs_topk", "part": "Search", "want": "3-", "of": "letters"},
        {"run": "abs_topk", "of": "letters", "how": "by year", "at": "1900"},
    ],
    ids=str,
)
def test_every_view_opens_and_believes_no_text(app, address):
    test = app(**address)
    assert_fine(test)
    html = page_html(test)
    assert "sl-empty" not in html, html
    for hostile in HOSTILE[:4]:
        assert hostile not in html
    assert "\u202e" not in html


def told(html: str) -> int:
    """How many latents the page says differ."""
    return int(html.split(" of ")[0].rsplit("<b>", 1)[-1].split("<")[0].replace(",", ""))


def test_a_planted_difference_is_found_and_random_halves_have_none(app):
    html = page_html(app(of="letters", how="by year", at="1900"))
    lead = html[html.index("fire in a share") - 60 :]
    assert told(lead) > 0
    assert "between random halves of the same documents it is <b>0</b>" in lead
    assert "Its strongest there" in html and "sl-examples" in html
    same = page_html(app(of="letters", how="with others"))
    assert told(same[same.index("fire in a share") - 60 :]) == 0


def test_documents_of_a_concept_come_first_with_their_words(app):
    test = app(part="Search", find="war", of="letters")
    assert_fine(test)
    html = page_html(test)
    assert "of 40 documents" in html and "sl-token" in html
    assert str(test.query_params["want"])


@pytest.mark.parametrize("words", ["x", "99", "-1", "3,,<b>", "5-"])
def test_a_query_that_means_nothing_is_refused(words):
    from explorer.collection_panels import wanted_of

    with pytest.raises(ConfigError, match="must name latents from 0 to 47"):
        wanted_of(words, 48, False)


def test_an_address_that_means_nothing_is_explained(app):
    test = app(part="Search", want="99")
    assert_fine(test)
    assert "must name latents from 0 to 47" in page_html(test)


def test_a_collection_is_never_looked_for_outside_the_run(app):
    test = app(of="../../activations")
    assert_fine(test)
    assert test.query_params["of"] in ("letters", ["letters"])


def test_documents_are_divided_by_what_is_known_of_them():
    from explorer.collection_loaders import divided

    from saelab.documents import DocumentCodes
    from saelab.sparse_codes import SparseCodes

    codes = SparseCodes.from_dense(torch.eye(4))
    documents = DocumentCodes.of_tokens(codes, torch.arange(4), signed=False)
    from dataclasses import replace

    fields = [{"year": 1900, "by": "a"}, {"year": 1899.5, "by": "b"}, {"by": "a"}, {"year": None}]
    documents = replace(documents, fields=fields)
    kept, first = divided(documents, "year", "1900")
    assert len(kept) == 2 and first.tolist() == [True, False]
    kept, first = divided(documents, "by", "a")
    assert len(kept) == 3 and first.tolist() == [True, False, True]
