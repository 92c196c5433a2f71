"""Labeled text: the layout of sae-probes, made here, and CSV files; examples of a tiny model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.errors import ConfigError, CorpusError, DataError
from saelab.models import LanguageModel
from saelab.probing.data_sets import data_set_names, load_data_set, read_labeled_csv
from saelab.probing.examples import read_examples
from saelab.probing.pooling import pool
from saelab.sae import SAE
from tests.tiny_models import sentences, tiny_language_model

HOOK, NEURONS = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"


def _write(path: Path, content: str) -> None:
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.output_stream(path, compression="zstd") as stream:
        stream.write(content.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two data sets in the package's layout, one of them not binary."""
    data = tmp_path / "sae_probes" / "data"
    index = "Dataset Tag,Dataset save name,Data type\n"
    index += "is_short,cleaned_data/5_is_short.csv,Binary Classification\n"
    index += "year,cleaned_data/6_year.csv,Continuous Data\n"
    _write(data / "probing_datasets_MASTER.csv.zst", index)
    rows = "prompt,prompt_len,target\n"
    rows += '"One, two",3,True\nNA,1,False\n"one, TWO ",3,True\nboth,1,True\nboth,1,False\n'
    rows += "None,1,False\n"
    _write(data / "cleaned_data" / "5_is_short.csv.zst", rows)
    return tmp_path


def test_a_data_set_gives_every_text_once(folder: Path) -> None:
    assert data_set_names(folder) == ["is_short"]
    found = load_data_set("is_short", folder)
    assert found.texts == ["One, two", "NA", "None"]  # words, not missing values
    assert found.positive.tolist() == [True, False, False]
    assert found.labels == ("False", "True")
    assert (found.n_repeated, found.n_contradicting) == (1, 2)


def test_labels_can_be_put_together_and_others_left_out(folder: Path) -> None:
    data = folder / "sae_probes" / "data"
    rows = "prompt,prompt_len,target\nbad,1,0\nsad,1,1\nso so,1,2\ngood,1,3\nfine,1,4\nsad,1,4\n"
    _write(data / "cleaned_data" / "6_year.csv.zst", rows)
    found = load_data_set("year", folder, negative=["0", "1"], positive=["3", "4"])
    assert found.texts == ["bad", "good", "fine"]  # "sad" carries both labels
    assert found.positive.tolist() == [False, True, True]
    assert found.labels == ("0 0/1", "1 3/4")
    for groups in ({"negative": ["0"]}, {"negative": ["0"], "positive": ["9"]},
                   {"negative": ["0", "1"], "positive": ["1"]}):  # fmt: skip
        with pytest.raises(CorpusError, match="give two groups that share none"):
            load_data_set("year", folder, **groups)
    with pytest.raises(CorpusError, match="no binary data set 'year'"):
        load_data_set("year", folder)


def test_a_sample_is_balanced_and_repeatable(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt,target\n" + "".join(f"text {i},{i % 3 == 0}\n" for i in range(90)))
    data = read_labeled_csv(path)
    assert data.name == "mine" and len(data.texts) == 90
    some = data.sample(20, seed=1)
    assert len(some.texts) == 20 and int(some.positive.sum()) == 10
    assert some.texts == data.sample(20, seed=1).texts != data.sample(20, seed=2).texts
    label = dict(zip(data.texts, data.positive.tolist(), strict=True))
    assert [label[text] for text in some.texts] == some.positive.tolist()
    assert len(data.sample(None).texts) == 60


def test_what_is_missing_is_named_with_the_command_that_gets_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAELAB_CORPORA", str(tmp_path / "nothing"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CorpusError, match="pip install --no-deps sae-probes"):
        data_set_names()
    with pytest.raises(CorpusError, match="Did you mean is_short"):
        load_data_set("is_shortt", folder)
    with pytest.raises(CorpusError, match="no binary data set 'year'"):
        load_data_set("year", folder)


def test_damaged_and_unsuitable_files_are_refused(folder: Path, tmp_path: Path) -> None:
    damaged = folder / "sae_probes" / "data" / "cleaned_data" / "5_is_short.csv.zst"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(CorpusError, match=r"cannot be read as CSV|labels|no column"):
        load_data_set("is_short", folder)
    three = tmp_path / "three.csv"
    three.write_text("prompt,target\na,1\nb,2\nc,3\n")
    with pytest.raises(CorpusError, match="3 labels"):
        read_labeled_csv(three)
    with pytest.raises(CorpusError, match="no column text"):
        read_labeled_csv(three, text_field="text")
    with pytest.raises(CorpusError, match="no file"):
        read_labeled_csv(tmp_path / "gone.csv")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model()


def test_examples_are_the_pooled_rows_of_each_text_by_itself(model: LanguageModel) -> None:
    texts = [text[: 9 + 5 * i] for i, text in enumerate(sentences(5))]
    sae = SAE(32, 64, AbsTopK(4), hook=HOOK)
    found = read_examples(
        model, texts, [NEURONS], "mean", sae=sae, rows_per_batch=2, outlier_factor=None
    )
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    assert found.latents is not None
    for i, text in enumerate(texts):
        ids = torch.tensor([[model.bos_token_id or 0, *model.encode(text)]])
        alone = model.activations(ids, [NEURONS, HOOK])
        one = torch.zeros(ids.shape[1] - 1, dtype=torch.long)
        wanted = pool(alone[NEURONS][0, 1:], one, "mean")[0]
        assert torch.allclose(found.activations[NEURONS][i], wanted, atol=1e-4)
        latents = sae.encode(alone[HOOK][0, 1:]).dense().mean(0)
        assert torch.allclose(found.latents[i].dense()[0], latents, atol=1e-3)


def test_the_last_tokens_of_a_long_text_are_read(model: LanguageModel) -> None:
    text = sentences(1)[0]
    short = model.decode(model.encode(text)[-6:])
    long = read_examples(model, [text], [HOOK], "last", max_length=6)
    assert torch.allclose(
        long.activations[HOOK], read_examples(model, [short], [HOOK], "last").activations[HOOK],
        atol=1e-4,
    )  # fmt: skip
    assert long.n_tokens == 6


def test_empty_texts_and_outliers_have_no_part(model: LanguageModel) -> None:
    texts = ["", *sentences(3)]
    found = read_examples(model, texts, [HOOK], "mean")
    assert found.rows.tolist() == [1, 2, 3]
    assert found.n_outliers == 0
    few = read_examples(model, texts, [HOOK], "mean", outlier_factor=1.0)
    assert few.n_outliers > 0 and few.n_tokens + few.n_outliers == found.n_tokens
    with pytest.raises(DataError, match="No text"):
        read_examples(model, [""], [HOOK], "mean")
    with pytest.raises(ConfigError, match="neither"):
        read_examples(model, texts, [], "mean")


def test_halves_keep_the_tails_apart(model: LanguageModel) -> None:
    sae = SAE(32, 16, TopK(4), hook=HOOK)
    plain = read_examples(model, sentences(3), [], "max", sae=sae).latents
    halves = read_examples(model, sentences(3), [], "max", sae=sae, halves=True).latents
    assert plain is not None and halves is not None
    assert halves.d_sae == 32
    assert np.allclose(halves.dense()[:, :16], plain.dense())
    assert not halves.dense()[:, 16:].any()  # TopK latents are never negative
