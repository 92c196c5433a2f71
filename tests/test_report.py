import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.errors import ConfigError, DataError
from saelab.latents import look
from saelab.report import Card, Panel, Table, asset, embed_json, figures_page, page
from saelab.sae import SAE
from saelab.tokens import Tokens
from tests.tiny_models import tiny_language_model

HOSTILE = "</script><img src=x onerror=alert(1)>"
NASTY = [HOSTILE, "<!--<script>", "]]>", "&lt;b&gt;", "\u2028\u2029", "\ud800", '"><svg onload=x>']


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._in_script = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._in_script = True
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        if tag == "script":
            self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def json(self, name):
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == name]
        return json.loads(text)


def assert_inert(text):
    """No request, no handler, and no script but those the policy names by hash."""
    found = Elements(text)
    for tag, attributes in found.tags:
        assert tag not in ("img", "svg", "iframe", "link", "object", "base", "form"), tag
        assert not {"src", "href", "srcdoc", "action"} & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    (policy,) = [m["content"] for m in found.named("meta") if "http-equiv" in m]
    allowed = re.findall(r"'sha256-([^']+)'", policy or "")
    code = [text for attributes, text in found.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in code]
    assert digests == allowed
    assert "default-src 'none'" in (policy or "")
    assert "script-src 'unsafe" not in (policy or "")
    return found


@pytest.mark.parametrize("text", NASTY)
def test_embedded_json_cannot_leave_its_element_and_comes_back_whole(text):
    embedded = embed_json({"text": text})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert embedded.isascii()
    assert json.loads(embedded) == {"text": text}


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(DataError, match="cannot show this value"):
        embed_json([float("nan")])


def test_a_script_that_would_end_itself_is_refused():
    with pytest.raises(DataError, match="its own end tag"):
        page("t", "", scripts=["'</SCRIPT>'"])


def test_a_page_escapes_its_title_and_its_data():
    found = assert_inert(page(HOSTILE, "", data={"d": NASTY}, scripts=["1 < 2 && 3 > 2;"]))
    assert found.json("d") == NASTY


def test_the_page_scripts_never_write_markup():
    for name in ("first_look.js", "figures.js"):
        code = asset(name)
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert banned not in code, (name, banned)
        for banned in ("fetch(", "XMLHttpRequest", "import(", "http://www.w3"):
            if banned == "http://www.w3":
                continue  # the name of the SVG namespace, not an address
            assert banned not in code, (name, banned)
    assert not re.findall(r"url\(|@import", asset("style.css"))


def test_a_figures_page_escapes_every_text_and_inlines_plotly_once():
    import plotly.graph_objects as go

    text = figures_page(
        eyebrow=HOSTILE,
        title=HOSTILE,
        lead=HOSTILE,
        warnings=[HOSTILE],
        cards=[Card(name=HOSTILE, value=HOSTILE, note=HOSTILE)],
        panels=[Panel(title=HOSTILE, caption=HOSTILE, figure=go.Figure(go.Bar(x=[1], y=[2])))],
        tables=[Table(title=HOSTILE, rows=[(HOSTILE, HOSTILE, HOSTILE)])],
        notes=[HOSTILE],
    )
    found = assert_inert(text)
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert found.json("figures")[0]["data"][0]["type"] == "bar"
    assert "template" not in found.json("figures")[0]["layout"]
    assert set(found.json("templates")) == {"light", "dark"}
    assert "alert(1)&gt;" in text


@pytest.fixture(scope="module")
def seen():
    """A look in which every text is hostile, and its model and tokens."""
    model = tiny_language_model()
    generator = torch.Generator().manual_seed(0)
    sae = SAE(32, 60, TopK(3), hook="blocks.1.hook_resid_post")
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(60, 32, generator=generator))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc[7] = -1e9
    ids = torch.randint(1, 257, (12, 30), generator=generator)
    ids[:, 0] = 0
    document = torch.zeros(12, 30, dtype=torch.int32)
    document[:, 0] = -1
    tokens = Tokens(ids, document, document >= 0, [HOSTILE], 0, {"name": HOSTILE})
    found = look(sae, model, tokens, n_examples=4, context=(5, 3), outlier_factor=None)
    found.about.update(model=HOSTILE, hook=HOSTILE)
    for place, key in enumerate(found.strings):
        found.strings[key] = NASTY[place % len(NASTY)]
    return found


def test_hostile_tokens_names_and_corpora_are_inert(seen, tmp_path):
    found = assert_inert(seen.save_html(tmp_path / "look.html").read_text(encoding="utf-8"))
    data = found.json("look")
    assert set(data["strings"]) == set(NASTY)
    assert data["sources"] == [HOSTILE]
    assert len(found.named("title")) == 1
    assert len(found.scripts) == 2


def test_the_page_holds_every_latent_with_its_numbers(seen, tmp_path):
    data = Elements(seen.save_html(tmp_path / "a.html").read_text(encoding="utf-8")).json("look")
    assert data["latent"] == list(range(60))
    assert data["count"][0] == seen.counts.tolist()
    assert data["n_tokens"] == seen.n_tokens == 12 * 29
    assert data["histogram"][0] == seen.tails[0].histogram.tolist()
    assert data["opening"] == seen.pick(1)[0]
    assert data["examples"][0][7] == []
    assert data["top_token"][0][7] == -1


def test_the_contexts_on_the_page_are_those_of_the_look(seen, tmp_path):
    data = Elements(seen.save_html(tmp_path / "b.html").read_text(encoding="utf-8")).json("look")
    latent = int(seen.counts.argmax())
    for rank, example in enumerate(data["examples"][0][latent]):
        row, position, _, before, _, _, words, levels = example
        assert row == seen.tails[0].row[latent, rank]
        assert position == seen.tails[0].position[latent, rank]
        ids = [token for token in seen.ids[0][latent, rank].tolist() if token >= 0]
        assert [data["strings"][word] for word in words] == [seen.strings[i] for i in ids]
        strength = levels[before] / 999 * float(seen.strongest[latent])
        assert strength == pytest.approx(float(seen.tails[0].strength[latent, rank]), rel=2e-3)
    assert len(data["examples"][0][latent]) == 4


def test_a_small_budget_leaves_out_contexts_and_says_so(seen, tmp_path):
    whole = seen.save_html(tmp_path / "c.html").read_text(encoding="utf-8")
    small = seen.save_html(tmp_path / "d.html", max_bytes=3000).read_text(encoding="utf-8")
    assert len(small) < len(whole)
    examples = Elements(small).json("look")["examples"][0]
    assert max(map(len, examples)) == 2
    kept = [place for place, some in enumerate(examples) if some]
    left_out = 59 - len(kept)
    assert left_out > 0
    assert f"contexts of the {left_out} latents that fire least often are left out" in small
    assert "fire least often" not in whole
    counts = seen.counts
    assert min(counts[kept]) >= max(count for p, count in enumerate(counts) if p not in kept)


def test_some_latents_can_be_saved_alone(seen, tmp_path):
    text = seen.save_html(tmp_path / "e.html", latents=[9, 2], n_examples=1).read_text("utf-8")
    data = Elements(text).json("look")
    assert data["latent"] == [2, 9]
    assert [len(some) for some in data["examples"][0]] == [1, 1]
    assert "2 of the 60 latents" in text
    with pytest.raises(ConfigError, match="Latent 60 was not looked at"):
        seen.save_html(tmp_path / "f.html", latents=[60])


def test_a_look_at_dead_latents_alone_is_still_a_page(seen, tmp_path):
    text = seen.save_html(tmp_path / "g.html", latents=[7]).read_text(encoding="utf-8")
    assert Elements(text).json("look")["examples"] == [[[]]]
