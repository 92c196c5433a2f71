"""Rows of tokens: what goes where, what is kept, how they are split, counted and compared."""

import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saelab import corpora, tokens
from saelab.corpora import Document
from saelab.errors import ConfigError, CorpusError, ShapeError
from saelab.models import LanguageModel, load_model
from saelab.tokens import Tokens
from saelab.tokens import statistics as token_statistics
from tests.tiny_models import TinyPlainModel, sentences, tiny_language_model

BOS = 0


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A model with one token per byte: id 0 is the BOS, 257 ids in all."""
    return tiny_language_model()


@pytest.fixture(scope="module")
def wordless() -> LanguageModel:
    """A model without a tokenizer and without a BOS; 50 ids."""
    return load_model(TinyPlainModel(), device="cpu")


def ids_of(model: LanguageModel, text: str) -> list[int]:
    return model.encode(text)


def random_documents(count: int, length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 257, (length,), generator=generator) for _ in range(count)]


# packing


def test_packed_rows_hold_bos_text_and_separators(model):
    made = tokens.from_text(model, [[1, 2, 3], [4, 5, 6, 7, 8, 9]], length=5)
    # the stream is 1 2 3 | 0 4 5 6 7 | 8 9 : a separator between the documents, rows of 4
    assert made.ids.tolist() == [[BOS, 1, 2, 3, BOS], [BOS, 4, 5, 6, 7]]
    assert made.document.tolist() == [[-1, 0, 0, 0, -1], [-1, 1, 1, 1, 1]]
    assert made.kept.tolist() == [[False, True, True, True, False], [False] + [True] * 4]
    assert made.corpus["dropped_tokens"] == 2  # 8 and 9 do not fill a row
    assert bool(made.mask.all())
    assert (made.n_rows, made.length, made.n_tokens, made.n_kept) == (2, 5, 10, 7)


def test_a_document_that_starts_a_row_needs_no_separator(model):
    made = tokens.from_text(model, [[1, 2, 3, 4], [5, 6, 7, 8]], length=5)
    assert made.ids.tolist() == [[BOS, 1, 2, 3, 4], [BOS, 5, 6, 7, 8]]
    # the separator after 1 2 3 is what moves the third document to the start of a row
    made = tokens.from_text(model, [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], length=5)
    assert made.ids.tolist() == [[BOS, 1, 2, 3, BOS], [BOS, 4, 5, 6, 7], [BOS, 8, 9, 10, 11]]


def test_without_bos_rows_begin_with_text_and_documents_are_still_separated(model):
    made = tokens.from_text(model, [[1, 2, 3], [4, 5]], length=3, prepend_bos=False)
    assert made.ids.tolist() == [[1, 2, 3], [BOS, 4, 5]]
    assert made.kept.tolist() == [[True] * 3, [False, True, True]]
    assert made.bos_token_id is None


def test_padded_rows_never_mix_documents(model):
    made = tokens.from_text(model, [[1, 2, 3, 4], [5]], length=4, pack=False)
    assert made.ids.tolist() == [[BOS, 1, 2, 3], [BOS, 4, BOS, BOS], [BOS, 5, BOS, BOS]]
    assert made.document.tolist() == [[-1, 0, 0, 0], [-1, 0, -1, -1], [-1, 1, -1, -1]]
    assert made.mask.tolist() == [
        [True] * 4,
        [True, True, False, False],
        [True, True, False, False],
    ]
    assert made.kept.sum() == 5
    assert made.corpus["dropped_tokens"] == 0


def test_ids_are_stored_in_four_bytes(model):
    made = tokens.from_text(model, sentences(), length=16)
    assert made.ids.dtype == made.document.dtype == torch.int32


def test_text_comes_back_from_the_rows_with_its_document(model):
    texts = list(sentences(5))
    made = tokens.from_text(model, texts, length=32, pack=False)
    for index, text in enumerate(texts):
        assert model.decode(made.ids[made.document == index].tolist()) == text
        assert made.document_names[index] == f"text {index}"


def test_a_tokenizer_less_model_takes_lists_of_ids(wordless):
    assert wordless.bos_token_id is None
    made = tokens.from_text(wordless, [[1, 2, 3], [4, 5, 6]], length=3)
    assert made.ids.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert bool(made.kept.all())
    assert made.tokenizer == "none"
    with pytest.raises(CorpusError, match=r"has no tokenizer, so it cannot read the text 'text 0'"):
        tokens.from_text(wordless, ["words"], length=3)


def test_an_id_beyond_the_vocabulary_is_refused(wordless):
    with pytest.raises(CorpusError, match=r"'text 1' holds token id 50, but .* ids 0 to 49"):
        tokens.from_text(wordless, [[1, 2], [50]], length=2)
    with pytest.raises(CorpusError, match=r"holds token id -1"):
        tokens.from_text(wordless, [[-1, 2]], length=2)


# what is excluded


def test_the_spelling_of_a_special_token_is_plain_text(model):
    hostile = "before <|endoftext|> after"
    made = tokens.from_text(model, [hostile], length=len(hostile) + 1)
    assert made.ids[0, 1:].tolist() == [ids_of(model, character)[0] for character in hostile]
    assert made.n_kept == len(hostile)
    assert made.document[0, 1:].tolist() == [0] * len(hostile)


def test_special_tokens_in_given_ids_are_read_but_not_kept(model):
    made = tokens.from_text(model, [[5, BOS, 6, 7]], length=5)
    assert made.ids.tolist() == [[BOS, 5, BOS, 6, 7]]
    assert made.kept.tolist() == [[False, True, False, True, True]]
    assert made.document.tolist() == [[-1, 0, 0, 0, 0]]


def test_the_description_says_what_is_excluded(model):
    made = tokens.from_text(model, [[1, 2, 3, 4], [5, 6, 7, 8]], length=5, name="numbers")
    assert made.describe() == (
        "2 rows of 5 tokens from 2 documents of numbers; 8 of 10 positions are kept: BOS, "
        "separators, padding and special tokens are excluded from training, evaluation and display."
    )


def test_chats_use_the_template_and_do_not_keep_its_special_tokens(model):
    conversations = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Sun?"}, {"role": "assistant", "content": "Yes."}],
    ]
    made = tokens.from_chats(model, conversations, length=64)
    for index, messages in enumerate(conversations):
        written = made.ids[made.document == index].tolist()
        assert written == list(model.chat(messages))
    special = torch.isin(made.ids, torch.tensor(sorted(model.special_token_ids)))
    assert not bool((made.kept & special).any())
    assert made.n_rows == 2
    with pytest.raises(CorpusError, match=r"Conversation 0 is not a list of messages"):
        tokens.from_chats(model, [[{"role": "user", "text": "Hi"}]])


def test_a_bos_that_the_template_writes_is_not_doubled(model):
    class Templated:
        """The tiny model with a template that begins with the BOS."""

        def __getattr__(self, name: str):
            return getattr(model, name)

        def chat(self, messages: list) -> list[int]:
            return [BOS, *model.chat(messages)]

    talk = [[{"role": "user", "content": "Hi"}]]
    plain = tokens.from_chats(model, talk, length=64)
    with_bos = tokens.from_chats(Templated(), talk, length=64)  # pyright: ignore
    assert torch.equal(plain.ids, with_bos.ids)


# how much is read


def test_long_documents_are_encoded_in_pieces_to_the_same_ids(model, monkeypatch):
    text = " ".join(sentences(30))
    whole = tokens.from_text(model, [text], length=64)
    monkeypatch.setattr("saelab.corpora.documents.text_pieces.__defaults__", (50,))
    in_pieces = tokens.from_text(model, [text], length=64)
    assert torch.equal(whole.ids, in_pieces.ids)
    assert in_pieces.document_names == ["text 0"]
    assert in_pieces.corpus["sha256"] == whole.corpus["sha256"]


@pytest.mark.parametrize("pack", [True, False])
def test_max_tokens_bounds_the_rows_and_reads_no_further(model, pack):
    seen = []

    def endless():
        while True:
            seen.append(None)
            yield Document(f"document number {len(seen)} of very many")

    made = tokens.from_text(model, endless(), length=16, max_tokens=16 * 40 + 5, pack=pack)
    assert (made.n_rows, made.length) == (40, 16)
    assert len(seen) < 1000
    assert len(made.document_names) == int(made.document.max()) + 1


def test_max_tokens_gives_the_first_rows_of_the_whole(model):
    whole = tokens.from_text(model, sentences(), length=16)
    first = tokens.from_text(model, sentences(), length=16, max_tokens=16 * 7)
    assert torch.equal(first.ids, whole.ids[:7])
    assert torch.equal(first.document, whole.document[:7])


def test_a_seed_shuffles_documents_the_same_way_each_time(model):
    plain, once, again = (
        tokens.from_text(model, sentences(), length=16, seed=seed) for seed in (None, 3, 3)
    )
    assert once.sha256 == again.sha256 != plain.sha256
    assert once.document_names == again.document_names != plain.document_names
    assert sorted(once.document_names) == plain.document_names


def test_empty_documents_are_passed_over_and_counted(model):
    made = tokens.from_text(model, ["", "abcdef", " \n "], length=4)
    assert made.corpus["empty_documents"] == 2
    assert made.document_names == ["text 1"]


@pytest.mark.parametrize("source", [[""], [], [" \n", ""], [[]]])
def test_no_text_at_all_is_refused(model, source):
    with pytest.raises(CorpusError, match="There is no text in given text"):
        tokens.from_text(model, source)


def test_an_empty_file_is_refused_by_name(model, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CorpusError, match=r"There is no text in a\.txt"):
        tokens.from_text(model, tmp_path / "a.txt")


def test_text_shorter_than_a_row_says_what_to_do(model):
    with pytest.raises(CorpusError, match=r"has 3 tokens, fewer than one packed row of 128.*pack="):
        tokens.from_text(model, ["abc"])
    assert tokens.from_text(model, ["abc"], pack=False).n_kept == 3


def test_impossible_lengths_are_refused(model):
    with pytest.raises(ConfigError, match="length=1 leaves no room"):
        tokens.from_text(model, ["abc"], length=1)
    with pytest.raises(ConfigError, match=r"length=4096 is longer than the model's context of"):
        tokens.from_text(model, ["abc"], length=4096)
    with pytest.raises(ConfigError, match="max_tokens=5 is less than one row of length=8"):
        tokens.from_text(model, ["abc"], length=8, max_tokens=5)


def test_a_lone_surrogate_is_refused_with_its_document(model):
    with pytest.raises(
        CorpusError, match=r"'text 1' cannot be written as UTF-8: character 2 .*ud800"
    ):
        tokens.from_text(model, ["fine", "ab\ud800"])


def test_the_corpus_hash_is_that_of_the_text(model):
    made = tokens.from_text(model, sentences(), length=16)
    assert made.corpus["sha256"] == corpora.read(list(sentences())).sha256
    ids = [[1, 2, 3], [4, 5, 6]]
    assert tokens.from_text(model, ids, length=4).corpus["sha256"] == corpora.read(ids).sha256


# splitting


def kept_by_document(made: Tokens) -> dict[int, list[int]]:
    return {
        index: made.ids[made.document == index].tolist()
        for index in made.document[made.document >= 0].unique().tolist()
    }


@pytest.mark.parametrize("pack", [True, False])
def test_a_split_shares_no_document_and_loses_only_the_last_rows(model, pack):
    made = tokens.from_text(model, random_documents(40, 23), length=16, pack=pack)
    train, held = made.split(0.25, seed=1)
    ours, theirs = kept_by_document(train), kept_by_document(held)
    assert not ours.keys() & theirs.keys()
    assert len(ours) + len(theirs) == 40
    whole = kept_by_document(made)
    for side, part in ((train, ours), (held, theirs)):
        lost = sum(len(whole[index]) - len(ids) for index, ids in part.items())
        assert lost == side.corpus["dropped_tokens"] < 16
        for index, ids in part.items():
            assert ids == whole[index][: len(ids)]
        assert side.document_names == made.document_names
    assert held.n_kept / made.n_kept == pytest.approx(0.25, abs=0.05)
    assert train.corpus["split"]["part"] == "training"


def test_the_same_seed_splits_the_same_way(model):
    made = tokens.from_text(model, random_documents(20, 23), length=16)
    assert made.split(seed=1)[1].sha256 == made.split(seed=1)[1].sha256
    assert made.split(seed=1)[1].sha256 != made.split(seed=2)[1].sha256


def test_one_giant_document_does_not_become_the_held_out_side(model):
    documents: Sequence[Tensor] = [*random_documents(10, 40), *random_documents(1, 4000, seed=9)]
    for seed in range(5):
        _, held = tokens.from_text(model, documents, length=16).split(0.05, seed=seed)
        assert held.n_kept < 400


def test_a_single_document_is_split_by_position_only(model):
    made = tokens.from_text(model, random_documents(1, 150), length=16)
    with pytest.raises(CorpusError, match=r"1 document cannot be divided .*split\(by='position'\)"):
        made.split()
    train, held = made.split(0.2, by="position")
    assert (train.n_rows, held.n_rows) == (8, 2)
    assert torch.equal(torch.cat([train.ids, held.ids]), made.ids)


def test_impossible_splits_are_refused(model):
    made = tokens.from_text(model, random_documents(3, 6), length=16)
    with pytest.raises(ConfigError, match=r"held_out=1\.0 must be between 0 and 1"):
        made.split(1.0)
    with pytest.raises(
        CorpusError, match=r"The training side has 12 text tokens, fewer than one row"
    ):
        made.split(0.3)
    with pytest.raises(CorpusError, match="1 row cannot be split"):
        made.split(0.3, by="position")


# counting


def test_statistics_of_a_hand_made_text(model):
    made = tokens.from_text(model, [[1, 1, 1, 1, 2, 2], [3, 4]], length=9)
    # kept: 1 four times, 2 twice, 3 and 4 once: shares 1/2, 1/4, 1/8, 1/8; entropy 1.75 bits
    made = tokens.from_text(model, [[1, 1, 1, 1, 2, 2], [3, 4]], length=7, pack=False)
    found = made.statistics(model)
    assert found["n_kept"] == 8
    assert (found["n_tokens"], found["rows"], found["documents"]) == (14, 2, 2)
    assert found["unique_tokens"] == 4
    assert found["entropy_bits"] == pytest.approx(1.75)
    assert found["top_share"] == 0.5
    assert [entry["token"] for entry in found["top_tokens"]] == [1, 2, 3, 4]
    assert found["top_tokens"][0]["count"] == 4
    assert found["top_tokens"][0]["text"] == model.token_strings([1])[0]
    assert found["tokens_per_document"] == {"min": 2, "q25": 3, "median": 4, "q75": 5, "max": 6}
    assert found["repeated_13grams"] == 0.0
    json.dumps(found)


def test_repeated_ngrams_are_those_seen_before(model):
    document = list(range(1, 31))
    once = tokens.from_text(model, [document], length=31)
    assert once.statistics()["repeated_13grams"] == 0.0
    twice = tokens.from_text(model, [document, document], length=31, pack=False)
    assert twice.statistics()["repeated_13grams"] == 0.5  # 18 n-grams, each seen twice


def test_ngrams_do_not_cross_documents_or_excluded_tokens(model):
    made = tokens.from_text(model, [[1, 2, 3], [4, 5, 6]], length=4)
    assert tokens.overlap(made, made, n=3)["ngrams"] == 2
    assert tokens.overlap(made, made, n=4)["ngrams"] == 0
    broken = tokens.from_text(model, [[1, 2, BOS, 3, 4]], length=6)
    assert tokens.overlap(broken, broken, n=2)["ngrams"] == 2  # 1 2 and 3 4


# comparing


def test_a_planted_leak_is_found_where_it_is(model):
    secret = random_documents(1, 60, seed=5)[0]
    train_documents = [secret, *random_documents(6, 100, seed=1)]
    clean = random_documents(3, 100, seed=2)
    leaky = torch.cat([random_documents(1, 40, seed=3)[0], secret[7:47]])
    train = tokens.from_text(model, train_documents, length=32)
    held = tokens.from_text(model, [*clean, leaky], length=32, pack=False)
    found = tokens.overlap(train, held, n=13)
    # 3 documents of 100 tokens have 88 13-grams each, the leaky one of 80 has 68;
    # its 40 leaked tokens hold 28
    assert (found["ngrams"], found["shared"]) == (3 * 88 + 68, 28)
    assert found["share"] == pytest.approx(28 / 332)
    assert [entry["document"] for entry in found["worst_documents"]] == ["text 3"]
    assert found["worst_documents"][0]["shared"] == 28
    assert {entry["document"] for entry in found["worst_rows"]} == {"text 3"}
    assert found["duplicate_rows"] == 0
    json.dumps(found)


def test_a_leak_is_found_across_the_cuts_between_rows(model):
    document = random_documents(1, 100)[0]
    train = tokens.from_text(model, [document], length=8)
    held = tokens.from_text(model, [document[3:]], length=11)
    found = tokens.overlap(train, held, n=13)
    assert found["ngrams"] > 0
    assert found["share"] == 1.0


def test_text_without_a_leak_shares_nothing(model):
    train = tokens.from_text(model, random_documents(4, 200, seed=1), length=32)
    held = tokens.from_text(model, random_documents(4, 200, seed=2), length=32)
    found = tokens.overlap(train, held)
    assert (found["shared"], found["share"], found["worst_rows"]) == (0, 0.0, [])


def test_duplicate_rows_are_counted(model):
    rows = random_documents(5, 15)
    train = tokens.from_text(model, rows[:3], length=16)
    held = tokens.from_text(model, [rows[2], rows[0], rows[4]], length=16)
    assert tokens.overlap(train, held)["duplicate_rows"] == 2


def test_hashes_compared_in_shares_give_the_same_counts(model, monkeypatch):
    documents = random_documents(6, 300, seed=1)
    made = tokens.from_text(model, [*documents, documents[0][:100]], length=32)
    train, held = made.split(0.3, seed=2)
    whole = tokens.overlap(train, held, n=5), made.statistics()
    assert whole[1]["repeated_13grams"] > 0
    monkeypatch.setattr(token_statistics, "_HASHES_AT_ONCE", 100)
    monkeypatch.setattr(token_statistics, "_CHUNK", 64)
    assert (tokens.overlap(train, held, n=5), made.statistics()) == whole


def test_comparing_needs_one_tokenizer(model, wordless):
    ours = tokens.from_text(model, [[1, 2, 3]], length=4)
    theirs = tokens.from_text(wordless, [[1, 2, 3]], length=3)
    with pytest.raises(ConfigError, match="Ids of different tokenizers cannot be compared"):
        tokens.overlap(ours, theirs)
    with pytest.raises(ConfigError, match="n=0 is not a length"):
        tokens.overlap(ours, ours, n=0)


# keeping


def test_saved_tokens_come_back_the_same(model, tmp_path):
    made = tokens.from_text(model, sentences(), length=16, pack=False)
    made.save(tmp_path / "text")
    back = Tokens.load(tmp_path / "text")
    assert back.sha256 == made.sha256
    for name in ("ids", "document", "kept", "mask"):
        assert torch.equal(getattr(back, name), getattr(made, name))
    for name in ("document_names", "bos_token_id", "corpus", "tokenizer", "padded"):
        assert getattr(back, name) == getattr(made, name)


def test_altered_or_missing_files_are_refused(model, tmp_path):
    made = tokens.from_text(model, sentences(), length=16)
    made.save(tmp_path)
    path = tmp_path / "tokens.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x07")
    with pytest.raises(CorpusError, match=r"tokens\.safetensors is not the file that was written"):
        Tokens.load(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"tokens\.safetensors is missing"):
        Tokens.load(tmp_path)
    path.write_bytes(good)
    manifest = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(CorpusError, match="has format version 2; this saelab reads 1"):
        Tokens.load(tmp_path)
    del manifest["corpus"]
    (tmp_path / "tokens.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match="lacks the entry 'corpus'"):
        Tokens.load(tmp_path)
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(CorpusError, match=r"No a manifest|No manifest"):
        Tokens.load(tmp_path)


def test_the_hash_sees_ids_documents_and_what_is_kept(model):
    made = tokens.from_text(model, [[1, 2, 3, 4]], length=5)
    hashes = {made.sha256}
    for name, value in (("ids", 9), ("document", 1), ("kept", False)):
        changed = {key: getattr(made, key).clone() for key in ("ids", "document", "kept")}
        changed[name][0, 2] = value
        hashes.add(Tokens(**changed, document_names=["a", "b"], bos_token_id=BOS).sha256)
    assert len(hashes) == 4


def test_slices_are_rows(model):
    made = tokens.from_text(model, sentences(), length=16)
    part = made[2:5]
    assert torch.equal(part.ids, made.ids[2:5])
    assert (len(part), part.document_names) == (3, made.document_names)
    with pytest.raises(ConfigError, match=r"tokens\[3:4\], not tokens\[2\]"):
        made[2]


def test_joined_tokens_keep_their_documents_apart(model):
    first = tokens.from_text(model, [Document("abcdefg", "a")], length=4)
    second = tokens.from_text(model, [Document("hijklmn", "b")], length=4)
    both = tokens.cat([first, second])
    assert both.document_names == ["a", "b"]
    assert both.document.tolist() == [[-1, 0, 0, 0]] * 2 + [[-1, 1, 1, 1]] * 2
    assert both.corpus["parts"] == [first.corpus, second.corpus]
    with pytest.raises(ConfigError, match=r"cannot be joined: their length is \[4, 5\]"):
        tokens.cat([first, tokens.from_text(model, ["hijklmn"], length=5)])
    with pytest.raises(ConfigError, match="at least one"):
        tokens.cat([])


def test_the_parts_of_a_split_join_under_their_old_document_indices(model):
    made = tokens.from_text(model, random_documents(8, 15), length=16)
    both = tokens.cat(made.split(0.25))
    assert both.document_names == made.document_names
    assert kept_by_document(both) == kept_by_document(made)


def test_tensors_of_different_shapes_are_refused():
    # outside the tests nothing checks the shapes before __post_init__ does
    bare = object.__new__(Tokens)
    for name, shape in (("ids", (2, 3)), ("document", (2, 2)), ("kept", (2, 3))):
        object.__setattr__(bare, name, torch.zeros(shape, dtype=torch.int32))
    with pytest.raises(ShapeError, match=r"document \(2, 2\) .* must have one shape"):
        bare.__post_init__()
