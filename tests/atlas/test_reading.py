"""Is an atlas asked and written in the ways a page and a notebook do it?"""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from saelab.atlas import TABLES, Annotations, Atlas
from saelab.errors import CheckpointError, ConfigError, FormatError
from tests.atlas.cases import built, dictionary, signed, text


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return built(tmp_path_factory.mktemp("reading"))


def test_tables_have_the_columns_they_promise(atlas):
    for name, columns in TABLES.items():
        table = atlas.arrow(name)
        assert table.column_names == list(columns)
        assert atlas.sql(f"SELECT * FROM {name} LIMIT 1").columns.tolist() == list(columns)


def test_latents_are_filtered_sorted_and_cut(atlas):
    everything = atlas.latents()
    assert len(everything) == atlas.d_sae
    dense = atlas.latents("density > ?", "density DESC, latent", 5, 2, parameters=[0.05])
    expected = everything[everything["density"] > 0.05].sort_values(
        ["density", "latent"], ascending=[False, True]
    )
    assert dense["latent"].tolist() == expected["latent"].tolist()[2:7]
    assert atlas.count("density > 0.05") == len(expected)
    assert {"label", "human_label", "llm_label", "note", "starred"} <= set(dense.columns)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM latents",
        "SELECT 1; SELECT 2",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "SELECT * FROM read_text('/etc/passwd')",
        "ATTACH 'x.db'",
        "SET enable_external_access = true",
        "INSERT INTO annotations SELECT 1, 1, '', '', true, '', ''",
        "SELECT nonsense FROM latents",
        "",
    ],
)
def test_only_one_select_over_the_atlas_is_answered(atlas, query):
    with pytest.raises(ConfigError):
        atlas.sql(query)
    assert atlas.count() == atlas.d_sae


def test_a_condition_that_is_more_than_a_condition_is_refused(atlas):
    with pytest.raises(ConfigError):
        atlas.latents("true); DELETE FROM latents; --")


def test_unknown_latents_and_tables_are_refused(atlas):
    with pytest.raises(ConfigError, match="Latent 40 is not in the dictionary, which has 0 to 39"):
        atlas.latent(40)
    with pytest.raises(ConfigError, match="There is no table 'nothing'"):
        atlas.arrow("nothing")


def test_a_folder_without_an_atlas_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match="saelab atlas RUN"):
        Atlas.open(tmp_path)


def test_search_finds_numbers_labels_notes_tokens_and_promoted_tokens(tmp_path):
    atlas = built(tmp_path)
    assert atlas.search("17")[0].latent == 17
    assert atlas.search("17")[0].field == "number"
    atlas.annotate(5, label="Talk of War", note="see the Somme")
    assert [(h.latent, h.field) for h in atlas.search("of war")] == [(5, "human")]
    assert [(h.latent, h.field) for h in atlas.search("SOMME")] == [(5, "note")]
    card = atlas.latent(9)
    token = card.positive.profile[0].text
    hits = {(h.latent, h.sign): h for h in atlas.search(token, 400)}
    assert (9, 1) in hits
    promoted = card.tails[1].promoted[0].token
    assert any(h.latent == 9 for h in atlas.search(promoted, 400))
    assert atlas.search("no text has this") == []
    assert atlas.search("  ") == []


def test_labels_of_people_come_before_automatic_ones(tmp_path):
    atlas = built(tmp_path)
    automatic = atlas.latent(4).label
    assert automatic
    assert atlas.labels([4]) == {4: automatic}
    atlas.annotate(4, label="mine", author="Ada")
    assert atlas.latent(4).label == atlas.labels()[4] == "mine"
    assert atlas.latent(4).labels[0].source == "Ada"
    atlas.annotate(4, label="")
    assert atlas.latent(4).label == automatic


def test_an_annotation_changes_only_what_is_given(tmp_path):
    notes = Annotations(tmp_path / "a.sqlite", 40)
    notes.write(3, label="a", starred=True, author="Ada")
    notes.write(3, note="n")
    notes.write(3, sign=-1, label="other side")
    first, second = notes.of(3)
    assert (first.label, first.note, first.starred) == ("a", "n", True)
    assert (second.sign, second.label) == (-1, "other side")
    notes.remove(3)
    assert [one.sign for one in notes.of(3)] == [-1]
    with pytest.raises(ConfigError, match="Latent 40 is not"):
        notes.write(40, label="x")
    with pytest.raises(ConfigError, match="sign=2"):
        notes.write(4, sign=2)


WRITER = """
import sys
sys.path.insert(0, {root!r})
from saelab.atlas.annotations import Annotations
notes = Annotations({path!r}, 1000)
for latent in range({first}, {first} + 60):
    notes.write(latent, label=f"latent {{latent}}")
    notes.write(999, note="from {first}")
"""


def test_two_processes_can_write_at_once(tmp_path):
    path, root = str(tmp_path / "both.sqlite"), str(Path(__file__).parent.parent.parent)
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITER.format(root=root, path=path, first=first)])
        for first in (0, 500)
    ]
    assert [worker.wait(100) for worker in workers] == [0, 0]
    found = Annotations(path, 1000).all()
    assert len(found) == 121
    assert all(one.label == f"latent {one.latent}" for one in found if one.latent != 999)


def test_another_process_s_label_is_seen_at_once(tmp_path):
    atlas = built(tmp_path)
    other = Atlas.open(tmp_path)
    other.annotate(2, label="theirs", starred=True)
    assert atlas.latent(2).label == "theirs"
    assert atlas.latents("starred")["latent"].tolist() == [2]


def test_annotations_travel_as_json(tmp_path):
    one, two = Annotations(tmp_path / "1.sqlite", 40), Annotations(tmp_path / "2.sqlite", 40)
    one.write(3, label="<b>three</b>", starred=True)
    one.write(4, note="four")
    path = one.save_json(tmp_path / "notes.json")
    two.write(4, note="newer four")
    assert two.load_json(path) == 1
    assert two.of(3) == one.of(3)
    assert two.of(4)[0].note == "newer four"
    assert two.load_json(path, replace=True) == 2
    assert two.all() == one.all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a file of annotations"),
        ('{"format": "other", "version": 1}', "is other version 1"),
        ('{"format": "saelab.annotations", "version": 1, "d_sae": 7}', "a dictionary of 7 latents"),
        (
            json.dumps(
                {"format": "saelab.annotations", "version": 1, "d_sae": 40,
                 "annotations": [{"latent": 1, "sign": 0, "label": 5}]}
            ),
            "is not a file of annotations",
        ),
    ],
)  # fmt: skip
def test_foreign_annotations_are_refused_whole(tmp_path, content, message):
    path = tmp_path / "notes.json"
    path.write_text(content, encoding="utf-8")
    notes = Annotations(tmp_path / "a.sqlite", 40)
    with pytest.raises(FormatError, match=message):
        notes.load_json(path)
    assert notes.all() == []


def test_a_damaged_file_of_annotations_is_refused(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 40)
    with pytest.raises(CheckpointError, match=r"a\.sqlite cannot be used"):
        Annotations(path, 40).all()


def test_threads_share_an_atlas(atlas):
    found: dict[int, list[str]] = {}

    def read(latent: int) -> None:
        found[latent] = [atlas.latent(latent).label for _ in range(4)]

    threads = [threading.Thread(target=read, args=(latent,)) for latent in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = atlas.labels()
    assert found == {latent: [labels[latent]] * 4 for latent in range(6)}


def test_different_seeds_share_less_than_the_same_dictionary(atlas, tmp_path):
    other = built(tmp_path / "other", signed(seed=5))
    by_cosine = atlas.compare(other, "cosine")
    assert by_cosine.shared < 0.2
    by_activation = atlas.compare(other, "correlation")
    assert set(by_activation.table.columns) == set(by_cosine.table.columns)
    assert (
        abs(by_activation.table["similarity"]).median() > abs(by_activation.table["null"]).median()
    )


def test_comparison_is_that_of_the_dense_matrices(tmp_path):
    one, two = built(tmp_path / "1", dictionary()), built(tmp_path / "2", dictionary(seed=1))
    from tests.atlas.cases import dense_latents

    dense = [dense_latents(sae, text()).double() for sae in (dictionary(), dictionary(seed=1))]
    both = torch.corrcoef(torch.cat([x.T for x in dense]))[:40, 40:].nan_to_num(-1)
    table = one.compare(two, "correlation").table.set_index("latent")
    for latent, similarity in table["similarity"].to_dict().items():
        assert similarity == pytest.approx(float(both[latent].max()), abs=1e-5)
    cosine = torch.cosine_similarity(
        dictionary().W_dec[:, None].detach(), dictionary(seed=1).W_dec[None].detach(), dim=2
    )
    table = one.compare(two, "cosine").table.set_index("latent")
    for latent, similarity in table["similarity"].to_dict().items():
        assert similarity == pytest.approx(float(cosine[latent].max()), abs=2e-3)


def test_what_cannot_be_compared_is_refused(atlas, tmp_path):
    other = built(tmp_path / "other", tokens=text(seed=3))
    with pytest.raises(ConfigError, match="built from different tokens"):
        atlas.compare(other, "correlation")
    bare = built(tmp_path / "bare", keep_codes=False)
    with pytest.raises(ConfigError, match="kept no codes"):
        atlas.compare(bare, "correlation")
    with pytest.raises(ConfigError, match="by='magic' is not known"):
        atlas.compare(other, "magic")


def test_opening_needs_no_model_and_little_time(atlas):
    assert Path(atlas.folder).is_dir()
    again = Atlas.open(atlas.folder)
    assert again.latent(1) == atlas.latent(1)
    again.close()
