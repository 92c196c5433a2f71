"""Do exports say what the atlas says, and does hostile text stay text?"""

import dataclasses
import json
import re
from typing import cast

import pytest
import torch

from saelab.atlas.loss_effects import measure_loss_effects
from saelab.atlas.neuronpedia import feature_panel, load_batches
from saelab.errors import ConfigError, FormatError
from saelab.models import LanguageModel
from saelab.tokens import Tokens
from tests.atlas.cases import CONFIG, D, built, dictionary, model, signed, text

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "**bold** [link](javascript:alert(1)) $x^2$",
    "\u202eright to left\u202c",
    "\u0000nul\u0000",
    "'); DROP TABLE latents; --",
    "\ud800 lone",
    "é" * 1_000_000,
    "\r\n\t",
    "",
]


class Hostile:
    """The tiny model with another text for its tokens."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def token_strings(self, ids):
        return [HOSTILE[token % len(HOSTILE)] for token in ids]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    from saelab.atlas import build_atlas

    tokens = dataclasses.replace(text(), document_names=["<b>d</b>"] * 41)
    folder = tmp_path_factory.mktemp("hostile")
    return build_atlas(signed(), cast(LanguageModel, Hostile(model())), tokens, folder, CONFIG)


def test_hostile_tokens_survive_the_round_trip(hostile):
    for token in (60, 61, 62, 63, 64, 65, 67, 68, 69):
        expected = HOSTILE[token % 10]
        assert hostile.strings([token]) == [expected]
        stored = hostile.sql("SELECT text FROM vocabulary WHERE token_id = ?", [token])
        assert stored["text"].tolist() == [expected]
    assert hostile.strings([66]) == ["? lone"]  # what UTF-8 cannot hold is replaced


def test_hostile_tokens_do_not_swell_the_tables_or_break_the_cards(hostile):
    assert max(hostile.sql("SELECT max(length(text)) AS n FROM examples")["n"]) <= 64 * 12
    for latent in range(5):
        card = hostile.latent(latent)
        assert "\0" not in card.label
        assert "\n" not in card.label
    assert hostile.search("<script>")
    assert hostile.search("'); DROP TABLE latents; --")
    assert hostile.count() == 40


def test_hostile_text_is_inert_in_the_page(hostile, tmp_path):
    hostile.annotate(3, label="<img src=x onerror=alert(2)>", note="</script><b>")
    page = hostile.save_html(tmp_path / "page.html", [1, 3, 5]).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert "<b>d</b>" not in page
    assert page.count("</script>") == len(re.findall(r"<script[ >]", page))


def test_the_page_holds_labels_notes_and_examples_of_the_chosen_latents(tmp_path):
    atlas = built(tmp_path / "atlas")
    atlas.annotate(3, label="my label", note="my note")
    page = atlas.save_html(tmp_path / "page.html", [3, 9]).read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="look">(.*?)</script>', page, re.S)[0])
    assert data["latent"] == [3, 9]
    assert data["names"][0] == "my label"
    assert ["Notes", "my note"] in data["details"][0]
    card = atlas.latent(9)
    assert data["count"] == [[atlas.latent(i).tails[s].count for i in (3, 9)] for s in (0, 1)]
    assert len(data["examples"][0][1]) == len(card.positive.top())
    first = data["examples"][0][1][0]
    assert [data["strings"][word] for word in first[6]] == list(card.positive.top()[0].tokens)
    with pytest.raises(ConfigError, match="No latents were named"):
        atlas.save_html(tmp_path / "none.html", [])


@pytest.mark.parametrize("sign", ["signed", "unsigned"])
def test_neuronpedia_batches_come_back_identical(tmp_path, sign):
    atlas = built(tmp_path / "atlas", signed() if sign == "signed" else dictionary())
    paths = atlas.save_neuronpedia(tmp_path / "np")
    back = load_batches(tmp_path / "np")
    alive = atlas.latents("count > 0")["latent"].tolist()
    assert list(back) == alive
    for latent in alive:
        assert back[latent] == feature_panel(atlas, latent)
    assert {path.name for path in paths} >= {"run_settings.json", "skipped_indexes.json"}


def test_neuronpedia_batches_have_their_keys_and_conventions(tmp_path):
    atlas = built(tmp_path / "atlas", dictionary())
    atlas.save_neuronpedia(tmp_path / "np", [2, 3])
    batch = json.loads((tmp_path / "np" / "batch-0.json").read_text())
    assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
    assert batch["layer"] == 1
    feature = batch["features"][0]
    assert set(feature) == {
        "feature_index", "neuron_alignment_indices", "neuron_alignment_values",
        "neuron_alignment_l1", "correlated_neurons_indices", "correlated_neurons_pearson",
        "correlated_neurons_l1", "correlated_features_indices", "correlated_features_pearson",
        "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero",
        "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_values",
        "logits_hist_data_bar_heights", "n_prompts_total", "n_tokens_in_prompt", "dataset",
        "activations", "decoder_weights_dist", "vector",
    }  # fmt: skip
    card = atlas.latent(2)
    assert feature["frac_nonzero"] == card.density
    assert sum(feature["freq_hist_data_bar_heights"]) == card.count
    top = feature["activations"][0]
    assert (top["bin_min"], top["bin_contains"]) == (-1, -1)
    assert top["bin_max"] == round(card.max, 3)
    best = card.positive.top()[0]
    assert top["qualifying_token_index"] == best.peak - 1
    assert top["tokens"] == list(best.tokens)
    assert max(top["values"]) == round(best.strength, 3)


def test_broken_batches_are_refused(tmp_path):
    with pytest.raises(FormatError, match="holds no batch"):
        load_batches(tmp_path)
    (tmp_path / "batch-0.json").write_text('{"features": [{"feature_index": 1}]}')
    with pytest.raises(FormatError, match="is not a batch of Neuronpedia's"):
        load_batches(tmp_path)


def test_effects_on_the_loss_are_what_ablating_the_latent_by_hand_changes(tmp_path):
    sae, tokens = signed(), text()
    atlas = built(tmp_path, sae, tokens)
    measure_loss_effects(atlas, sae, model(), tokens, [6, 7], n_examples=2)
    checked = 0
    for latent in (6, 7):
        for tail in atlas.latent(latent).tails:
            assert all(one.ablation is None for one in tail.top()[2:])
            for one in tail.top()[:2]:
                expected = by_hand(sae, tokens, latent, one)
                first = one.position - one.peak
                for place, value in enumerate(one.ablation or ()):
                    position = first + place
                    known = position > 1 and tokens.kept[one.row, [position - 1, position]].all()
                    assert (value is not None) == bool(known)
                    if value is not None:
                        assert value == pytest.approx(float(expected[position]), abs=1e-4)
                        checked += 1
    assert checked > 10


def by_hand(sae, tokens, latent, one):
    """log p(token) clean minus ablated, for every token of the row."""
    hook, ids = sae.hook, tokens.ids[one.row : one.row + 1].long()
    x = model().activations(ids, [hook])[hook]
    value = sae.encode(x[0]).dense()[:, latent] * tokens.kept[one.row]

    def edit(activation):
        return activation - (value[:, None] * sae.W_dec[latent]).detach()

    clean = model().logits(ids).log_softmax(2)
    with model().editing({hook: edit}):
        ablated = model().logits(ids).log_softmax(2)
    change = (clean - ablated)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
    return torch.cat([torch.zeros(1), change])


def test_at_the_last_layer_the_direct_effect_is_the_whole_effect(tmp_path):
    sae, tokens = dictionary(hook="blocks.2.hook_resid_post"), text()
    atlas = built(tmp_path, sae, tokens)
    latents = atlas.latents("count > 0", limit=6)["latent"].tolist()
    measure_loss_effects(atlas, sae, model(), tokens, latents, n_examples=3)
    seen = 0
    for latent in latents:
        for one in atlas.latent(latent).positive.top()[:3]:
            for before, direct, full in zip(
                one.activations, (one.direct or ())[1:], (one.ablation or ())[1:], strict=False
            ):
                if full is None:
                    continue
                assert (direct is not None) == (before != 0)
                assert full == pytest.approx(direct or 0.0, abs=1e-4)
                seen += direct is not None
    assert seen > 5


def test_direct_effects_can_be_part_of_the_build(tmp_path):
    atlas = built(tmp_path, direct_effects=1)
    alive = atlas.count("count > 0")
    assert atlas.sql("SELECT count(DISTINCT latent) AS n FROM loss_effects")["n"].tolist() == [
        alive
    ]


def test_effects_need_the_text_of_the_atlas(tmp_path):
    atlas = built(tmp_path)
    with pytest.raises(ConfigError, match="built from other tokens"):
        measure_loss_effects(atlas, signed(), model(), text(seed=2), [1])


def test_the_documents_are_named(tmp_path):
    tokens: Tokens = text()
    card = built(tmp_path, tokens=tokens).latent(2)
    names = {one.document for tail in card.tails for one in tail.examples}
    assert names <= set(tokens.document_names)
    assert D == 32
