"""A survey names planted lobes, sees relations, is saved whole, and does no work twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from saelab.cli import main
from saelab.crystal_figures import (
    best_partner_figure,
    parallelogram_figure,
    relation_figure,
    relations_figure,
)
from saelab.errors import CheckpointError, ConfigError, DataError
from saelab.family_figures import FamilyEdge, family_figure
from saelab.geometry import spatial_modularity
from saelab.geometry_survey import (
    GeometrySurvey,
    SurveyConfig,
    TreeFamily,
    survey_run,
    word_crystals,
)
from saelab.geometry_survey.lobes import Places, level_of
from saelab.lobe_figures import company_figure, lobe_colors, lobe_map
from saelab.run_folders import dictionary_of
from saelab.sparse_codes import SparseCodes
from tests.geometry.test_lobes import planted
from tests.tiny_models import tiny_language_model

HOOK = "blocks.1.hook_resid_post"
SMALL = SurveyConfig(max_tokens=4000, lobes=(2, 3), chunk_tokens=3, draws=2, shuffles=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_folder, tiny_text_file) -> Path:
    """A store, a small dictionary, and a wider one trained on nested prefixes."""
    from trainers import matryoshka

    root = tmp_path_factory.mktemp("survey")
    store = root / "activations"
    asked = ["--model", str(tiny_model_folder), "--text", str(tiny_text_file), "--length", "32"]
    assert main(["harvest", *asked, "--out", str(store), "--hook", HOOK]) == 0
    size = ["--k", "6", "--tokens", "40000", "--batch-size", "512"]
    assert main(["train", str(store), "--out", str(root / "topk"), "--d-sae", "64", *size]) == 0
    assert matryoshka.main([str(store), str(root / "nested"), "--d-sae", "128", *size]) == 0
    return root


@pytest.fixture(scope="module")
def survey(runs) -> GeometrySurvey:
    return survey_run(runs / "topk", SMALL, wider=[runs / "nested"])


def level(follow: bool):
    """Three planted lobes whose latents fire on tokens and in documents of their own."""
    counts, directions, lobes, values = planted(follow=follow)
    codes = SparseCodes.from_dense(values)
    topic = torch.tensor(np.asarray((values.reshape(240, 4, -1) != 0).sum(1)))
    topic = torch.stack([topic[:, lobes == lobe].sum(1) for lobe in range(3)], 1).argmax(1)
    token = topic.repeat_interleave(4)[codes.tokens].numpy()
    at = (token, codes.indices.numpy())
    table = csr_matrix((np.ones(len(token), dtype=np.int64), at), shape=(3, 90))
    test = spatial_modularity(counts, directions, 3, n_null=5, n_fits=1, n_random=1)
    kept = counts.of_latents(test.latents.numpy())
    names = ("peace", "war", "ships")
    places = Places(tokens=table, documents=table, names=names)
    found = level_of(
        test, kept, directions, places, kind="phi", near=5, signed=False, shuffles=20, seed=0
    )
    return found, lobes, codes


def test_lobes_are_marked_by_the_tokens_and_documents_their_latents_fire_in():
    found, lobes, _ = level(follow=True)
    marked = set()
    for number, lobe in enumerate(found.lobes):
        assert lobe.size == int((found.of == number).sum())
        (token, lift), *_ = lobe.tokens
        # One of three equal lobes has a third of all firing, and nearly all on its own token.
        assert 1.5 < lift < 3.1
        document, beside = lobe.documents[0]
        assert document == ("peace", "war", "ships")[token]
        assert beside.value == pytest.approx(lift) and abs(beside.mean - 1) < 0.15
        assert set(lobes[list(lobe.characteristic)].tolist()) == {token}
        marked.add(token)
    assert marked == {0, 1, 2}


def test_company_is_that_of_a_direct_count_and_chance_where_geometry_does_not_follow():
    found, _, _ = level(follow=True)
    unit = torch.nn.functional.normalize(planted(follow=True)[1][found.latents], dim=1)
    near = (unit @ unit.T - 2 * torch.eye(len(unit))).topk(5, dim=1).indices
    same = (found.of[near] == found.of[:, None]).double().mean(1)
    assert found.company.value == pytest.approx(float(same.mean()))
    for number, lobe in enumerate(found.lobes):
        assert lobe.company.value == pytest.approx(float(same[found.of == number].mean()))
        assert lobe.company.excess > 0.3
    apart, _, _ = level(follow=False)
    assert abs(apart.company.excess) < 0.1


def test_a_latent_of_the_part_gets_its_number_in_the_dictionary():
    found, _, _ = level(follow=True)
    latents = torch.arange(90) * 7 + 3
    moved = found.of_dictionary(latents)
    assert moved.latents.tolist() == latents[found.latents].tolist()
    assert moved.lobes[0].characteristic[0] == int(latents[found.lobes[0].characteristic[0]])


def test_a_relation_that_the_model_spells_alike_is_parallel_and_one_at_random_is_not():
    model = tiny_language_model()
    words = ["ship", "law", "tax", "bank", "year", "right", "state", "war"]
    mixed = ["cold", "open", "sell", "black", "early", "rich", "friend", "night"]
    relations = {
        "one, many": [(word, word + "s") for word in words],
        "at random": list(zip(words, mixed, strict=True)),
    }
    from saelab.activation_functions import TopK
    from saelab.sae import SAE

    found = word_crystals(model, SAE(32, 64, TopK(8), hook=HOOK), relations, n_null=50)
    by_name = {one.name: one for one in found.relations}
    assert found.relations[0].name == "one, many"
    assert by_name["one, many"].cosine.excess > 0.1 > by_name["at random"].cosine.excess
    assert by_name["one, many"].cosine.null == "pairs of all relations"
    assert len(by_name["at random"].places) == 8
    with pytest.raises(DataError, match="does not know these words"):
        word_crystals(model, SAE(32, 64, TopK(8), hook=HOOK), {"x": [("a", "b")]})


def test_an_axis_is_not_fitted_to_the_pairs_it_shows():
    from saelab.geometry_survey.words import _places

    # In 400 dimensions ten unrelated differences all point along their own mean, and not along
    # that of the others.
    x = torch.randn(20, 400, generator=torch.Generator().manual_seed(0))
    places = torch.tensor(_places(x, torch.arange(20).reshape(10, 2)))
    assert float((places[:, 2] - places[:, 0]).mean().abs()) < 0.15
    shared = torch.cat([x[:10], x[:10] + 3 * x[19]])
    pairs = torch.stack([torch.arange(10), torch.arange(10, 20)], 1)
    places = torch.tensor(_places(shared, pairs))
    torch.testing.assert_close(places[:, 2] - places[:, 0], torch.ones(10), atol=1e-4, rtol=0)


def test_a_survey_is_opened_as_it_was_measured(runs, survey):
    again = GeometrySurvey.open(runs / "topk" / "geometry")
    assert again.galaxy == survey.galaxy and again.parallelograms == survey.parallelograms
    assert again.words == survey.words and again.splits == survey.splits
    assert dict(again.pairs) == dict(survey.pairs) and dict(again.about) == dict(survey.about)
    assert list(again.levels) == [2, 3]
    for number, one in survey.levels.items():
        assert again.levels[number].lobes == one.lobes
        assert torch.equal(again.lobes_of(number), survey.lobes_of(number))
        spread = again.lobes_of(number)
        assert len(spread) == 64 and int((spread >= 0).sum()) == len(one.latents)
    size = sum(path.stat().st_size for path in (runs / "topk" / "geometry").iterdir())
    assert size < 300_000


def test_the_same_survey_is_only_opened_and_another_is_made(runs, survey):
    steps: list[str] = []

    def note(done: int, total: int, what: str) -> None:
        assert done <= total
        steps.append(what)

    held = survey_run(runs / "topk", SMALL, wider=[runs / "nested"], progress=note)
    assert steps == [] and held.galaxy == survey.galaxy
    from dataclasses import replace

    other = replace(SMALL, seed=1, words=False)
    found = survey_run(runs / "topk", other, progress=note)
    assert len(steps) > 5 and found.words is None and "--no-words" in found.words_missing
    survey_run(runs / "topk", SMALL, wider=[runs / "nested"])


@pytest.mark.parametrize("name", ["numbers.json", "latents.safetensors", "geometry.json"])
def test_a_file_that_was_altered_is_refused(survey, tmp_path, name):
    survey.save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=name):
        GeometrySurvey.open(tmp_path)


def test_families_in_a_wider_run_have_their_null_beside_them(runs, survey):
    family = survey.splits["../nested"]
    assert family.n_wider == 128
    assert family.n_edges == sum(n * (i + 1) for i, n in enumerate(family.sizes))
    assert sum(family.sizes[1:]) == family.n_splits >= len(family.splits)
    with pytest.raises(DataError, match="Name the narrower run first"):
        survey_run(runs / "nested", SMALL, wider=[runs / "topk"])


def test_a_dictionary_of_nested_prefixes_has_a_tree(runs):
    found = survey_run(runs / "nested", SMALL)
    assert found.tree is not None and found.tree.prefixes[-1] == 128
    again = GeometrySurvey.open(runs / "nested" / "geometry").tree
    assert again is not None and torch.equal(again.parent, found.tree.parent)


def test_a_tree_is_followed_from_its_roots():
    parent = torch.tensor([-1, -1, 0, 0, 2, 1, -1])
    tree = TreeFamily(
        prefixes=(2, 4, 7), candidates=5, orphan_rate=0.2, orphan_rate_null=0.9, parent=parent,
        score=torch.zeros(7),
    )  # fmt: skip
    assert tree.roots(5) == [(0, 3), (1, 1)]
    assert tree.family(0) == [(0, 2), (0, 3), (2, 4)]


def test_the_verb_says_every_number_beside_its_null(runs, capsys):
    words = [str(runs / "topk"), "--max-tokens", "4000", "--lobes", "2", "--chunk-tokens", "3"]
    assert main(["geometry", *words, "--draws", "2", "--shuffles", "5", "--no-words"]) == 0
    said = capsys.readouterr().out
    assert said.count("excess") >= 6 and "2 lobes" in said and "saelab explore" in said
    assert main(["geometry", str(runs / "nowhere")]) == 2


def test_figures_show_hostile_names_as_text(survey):
    import pandas

    hostile = "<b>bold</b><script>"
    names = dict.fromkeys(range(3), hostile)
    points = pandas.DataFrame(
        {"latent": range(64), "x": range(64), "y": range(64), "label": [hostile] * 64}
    )
    words = survey.words
    assert words is not None
    edges = [FamilyEdge(parent="a", child="b", weight=0.5, note="")]
    figures = [
        lobe_map(points, survey.lobes_of(3).numpy(), names, {0: (1.0, 2.0)}, 0),
        lobe_map(points, survey.lobes_of(3).numpy(), names, {0: (1.0, 2.0)}),
        company_figure(survey.levels[3], names, 1),
        parallelogram_figure(survey.parallelograms.best[0], [hostile] * 4),
        best_partner_figure(survey.parallelograms),
        relation_figure(words.relations[0]),
        relations_figure(words, words.relations[0].name),
        family_figure("a", edges, {"a": hostile, "b": hostile}, ("narrow", "wide")),
    ]
    for figure in figures:
        assert "<script>" not in str(figure.to_json()).replace("\\u003c", "<")
    assert len(set(lobe_colors(40))) == 40


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="must be at least 1"):
        SurveyConfig(near=0)


def test_counts_are_of_chunks_that_rows_are_long_enough_for(runs, survey):
    assert survey.about["chunk_tokens"] == 3
    sae = dictionary_of(runs / "topk")
    assert survey.about["d_sae"] == sae.d_sae
    whole = json.loads((runs / "topk" / "geometry" / "geometry.json").read_text())
    assert set(whole["files"]) == {"numbers.json", "latents.safetensors"}
