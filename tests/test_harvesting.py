"""Does a harvest end with the same files whatever interrupts it, and refuse what it must?"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kill_harvest import kill_harvests
from saelab.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    FolderBusyError,
    HookPointError,
    Interrupted,
    StoreError,
)
from saelab.harvesting import harvest
from saelab.models import LanguageModel, load_model
from saelab.store import ActivationStore, HarvestConfig
from saelab.store.manifest import Manifest, hook_folders
from tests.harvest_cases import HOOKS, SMALL, contents, rows_of_tokens, tiny_model
from tests.tiny_models import TinyPlainModel


def model_with_embedding(change: Callable[[Tensor], None]) -> LanguageModel:
    """The tiny model after `change` has edited its token embedding in place."""
    module = TinyPlainModel()
    with torch.no_grad():
        change(module.embedding.weight)
    return load_model(module, name="tiny", device="cpu")


def stop_after(batches: int) -> Callable[[int, int], None]:
    """A progress callback that behaves like Ctrl-C after so many forward passes."""
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == batches:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted harvest."""
    folder = tmp_path_factory.mktemp("harvest") / "acts"
    harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL)
    return folder


# --- interruptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 2, 3, 6, 9])
def test_an_interrupted_harvest_continues_to_the_same_files(
    whole: Path, tmp_path: Path, batches: int
) -> None:
    model, tokens = tiny_model(), rows_of_tokens()
    with pytest.raises(Interrupted, match=r"shards are finished and kept. Run the same command"):
        harvest(model, tokens, HOOKS, tmp_path, **SMALL, progress=stop_after(batches))
    with pytest.raises(StoreError, match=r"not finished: \d of 5 shards. Run the same harvest"):
        ActivationStore.open(tmp_path)
    harvest(model, tokens, HOOKS, tmp_path, **SMALL)
    assert contents(tmp_path) == contents(whole)


def test_what_is_finished_can_be_read_before_the_rest(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="2 of 5 shards"):
        harvest(tiny_model(), rows_of_tokens(), HOOKS, tmp_path, **SMALL, progress=stop_after(5))
    store = ActivationStore.open(tmp_path, partial=True)
    assert store.n_tokens == len(next(store.iterate(10**6)).addresses)
    assert store.n_chunks == 2


def test_a_harvest_killed_at_random_moments_ends_with_the_same_files(tmp_path: Path) -> None:
    report = kill_harvests(tmp_path, kills=3, kills_per_round=4)
    assert report.kills == 3
    assert report.differences == []


def test_leftover_temporary_files_are_removed(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "acts"))
    (folder / HOOKS[0] / ".00003.safetensors.17.tmp").write_bytes(b"half")
    harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL)
    assert contents(folder) == contents(whole)


def test_a_deleted_shard_is_made_anew(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "acts"))
    (folder / HOOKS[1] / "00002.safetensors").unlink()
    harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL)
    assert contents(folder) == contents(whole)


def test_a_truncated_shard_is_not_continued_over(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "acts"))
    path = folder / HOOKS[1] / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"is truncated.* or delete it and run the same harvest"):
        harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL)


_FILLING = """
import resource, signal, sys, torch
torch.set_num_threads(int(sys.argv[2]))  # as the harvest that continues
from saelab.harvesting import harvest
from tests.harvest_cases import HOOKS, SMALL, rows_of_tokens, tiny_model
from saelab.errors import DiskFullError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
passes = []
def fill(done, total):
    passes.append(done)
    if len(passes) == 7:  # two shards are on disk; from here on no file may grow past 1 KiB
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    harvest(tiny_model(), rows_of_tokens(), HOOKS, sys.argv[1], **SMALL, progress=fill)
except DiskFullError as error:
    sys.stdout.write(str(error))
"""


def test_a_disk_that_fills_loses_nothing_and_the_harvest_continues(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "acts"
    command = [sys.executable, "-c", _FILLING, str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "No room to write" in done.stdout
    assert "What was finished before is kept; free some space and run the same" in done.stdout
    finished = Manifest.read(folder).shards
    assert len(finished) >= 2
    ActivationStore.open(folder, partial=True).verify()
    harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL)
    assert contents(folder) == contents(whole)


def test_a_harvest_that_cannot_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"would need .* but only 1000 B are free"):
        harvest(tiny_model(), rows_of_tokens(), HOOKS, tmp_path / "acts", **SMALL)
    assert contents(tmp_path / "acts") == {}


_HOLDING = """
import sys
from saelab.files import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_on_one_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "acts"))
    command = [sys.executable, "-c", _HOLDING, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderBusyError, match=rf"written by another process \(pid {other.pid}"):
            harvest(tiny_model(), rows_of_tokens(seed=1), HOOKS, folder, **SMALL, append=True)
        other.communicate("")
    assert contents(folder) == contents(whole)


def test_continuing_with_other_threads_warns_that_bits_may_differ(tmp_path: Path) -> None:
    model, tokens, threads = tiny_model(), rows_of_tokens(), torch.get_num_threads()
    with pytest.raises(Interrupted):
        harvest(model, tokens, HOOKS, tmp_path, **SMALL, progress=stop_after(3))
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match="the rest may differ in its last bits"):
            harvest(model, tokens, HOOKS, tmp_path, **SMALL)
    finally:
        torch.set_num_threads(threads)


# --- continuing and appending ----------------------------------------------------------------


def test_a_finished_harvest_is_only_opened(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.*") if path.name[0] != "."}
    store = harvest(tiny_model(), rows_of_tokens(), HOOKS, whole, **SMALL)
    assert store.hooks == HOOKS
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "was begun with seed 0, and this harvest asks for 1"),
        ({"dtype": "bfloat16"}, "begun with dtype float32, and this harvest asks for bfloat16"),
        ({"hooks": HOOKS[:1]}, "hook points embedding.output, blocks.1.output, and this harvest"),
        ({"model": tiny_model(seed=5)}, "was begun with model weights sha256:"),
        ({"tokens": rows_of_tokens(seed=5)}, r"from other tokens. Pass append=True to add"),
    ],
)
def test_other_settings_on_a_folder_are_refused_by_name(
    whole: Path, change: dict, message: str
) -> None:
    before = contents(whole)
    asked = {"model": tiny_model(), "tokens": rows_of_tokens(), "hooks": HOOKS, **SMALL, **change}
    with pytest.raises(StoreError, match=message):
        harvest(folder=whole, **asked)
    assert contents(whole) == before


def test_appended_tokens_continue_the_store(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "acts"))
    model, first, more = tiny_model(), rows_of_tokens(), rows_of_tokens(rows=20, seed=1)
    store = harvest(model, more, HOOKS, folder, **SMALL, append=True)
    kept = contents(whole)
    now = contents(folder)
    assert all(now[name] == kept[name] for name in kept if name != "manifest.json")
    assert store.n_tokens == ActivationStore.open(whole).n_tokens + more.n_kept
    tokens = store.tokens
    assert tokens is not None
    assert tokens.n_rows == 57
    found = store.rows(0, store.n_tokens, HOOKS)
    at = found.addresses
    row, position = at.row.long(), at.position.long()
    assert torch.equal(tokens.ids[row, position], at.token)
    assert torch.equal(tokens.document[row, position], at.document)
    assert at.document.max() == len(first.document_names) + len(more.document_names) - 1
    truth = model.activations(tokens.ids.long(), HOOKS)
    for hook in HOOKS:
        torch.testing.assert_close(found.activations[hook], truth[hook][row, position])


def test_an_interrupted_append_continues_to_the_same_files(whole: Path, tmp_path: Path) -> None:
    model, more = tiny_model(), rows_of_tokens(rows=20, seed=1)
    one = Path(shutil.copytree(whole, tmp_path / "one"))
    two = Path(shutil.copytree(whole, tmp_path / "two"))
    harvest(model, more, HOOKS, one, **SMALL, append=True)
    with pytest.raises(Interrupted, match=r"6 of 8 shards"):
        harvest(model, more, HOOKS, two, **SMALL, append=True, progress=stop_after(3))
    with pytest.raises(StoreError, match=r"is not finished .* so nothing can be appended yet"):
        harvest(model, rows_of_tokens(seed=2), HOOKS, two, **SMALL, append=True)
    harvest(model, more, HOOKS, two, **SMALL, append=True)
    harvest(model, more, HOOKS, two, **SMALL, append=True)  # already there: nothing happens
    assert contents(one) == contents(two)


def test_appended_tokens_must_be_made_in_the_same_way(whole: Path) -> None:
    longer = rows_of_tokens(length=16)
    with pytest.raises(StoreError, match="tokens of length 12, and these have 16"):
        harvest(tiny_model(), longer, HOOKS, whole, **SMALL, append=True)


def test_shards_without_a_manifest_are_left_alone(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "acts"))
    (folder / "manifest.json").unlink()
    before = contents(folder)
    with pytest.raises(StoreError, match=r"holds shards but manifest.json is missing. Nothing was"):
        harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL)
    assert contents(folder) == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(StoreError, match=r"is not empty \(thesis.txt\) and holds no activation"):
        harvest(tiny_model(), rows_of_tokens(), HOOKS, tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.txt": b"three years of work"}


# --- what is kept ----------------------------------------------------------------------------


def test_a_position_that_is_an_outlier_at_one_hook_is_dropped_at_all(tmp_path: Path) -> None:
    def enlarge_token_7(weight: Tensor) -> None:
        weight[7] *= 1000

    model, tokens = model_with_embedding(enlarge_token_7), rows_of_tokens()
    store = harvest(model, tokens, HOOKS, tmp_path, **SMALL)
    sevens = int((tokens.ids[tokens.kept] == 7).sum())
    assert sevens > 0
    found = store.rows(0, store.n_tokens, HOOKS)
    assert not (found.addresses.token == 7).any()
    manifest = store.manifest
    assert manifest is not None
    dropped = sum(shard.n_dropped for shard in manifest.shards)
    assert dropped == tokens.n_kept - store.n_tokens >= sevens
    assert sum(shard.dropped[HOOKS[0]] for shard in manifest.shards) == sevens
    at = found.addresses
    truth = model.activations(tokens.ids.long(), HOOKS)
    for hook, x in found.activations.items():
        torch.testing.assert_close(x, truth[hook][at.row.long(), at.position.long()])


def test_the_norm_limit_is_a_multiple_of_the_first_batch_s_median(whole: Path) -> None:
    manifest = Manifest.read(whole)
    first = manifest.shards[0]
    assert first.index == 0
    assert first.n_dropped == 0
    store = ActivationStore.open(whole)
    rows = store.rows(0, first.n_tokens).addresses.row.unique_consecutive()[:4]
    tokens = rows_of_tokens()
    x = tiny_model().activations(tokens.ids[rows.long()].long(), HOOKS)[HOOKS[0]]
    median = float(x[tokens.kept[rows.long()]].norm(dim=1).median())
    assert manifest.hooks[0].norm_limit == pytest.approx(4 * median, rel=1e-5)


@pytest.mark.parametrize("outlier_factor", [None, 4.0])
def test_activations_that_are_not_finite_are_named(
    tmp_path: Path, outlier_factor: float | None
) -> None:
    def spoil_token_7(weight: Tensor) -> None:
        weight[7, 3] = torch.nan

    model, tokens = model_with_embedding(spoil_token_7), rows_of_tokens()
    settings = {**SMALL, "outlier_factor": outlier_factor}
    with pytest.raises(DataError, match="not finite") as caught:
        harvest(model, tokens, HOOKS, tmp_path, **settings)
    message = str(caught.value)
    words = message.replace(",", "").split()
    row, position, document = (
        int(words[words.index(name) + 1]) for name in ("row", "position", "document")
    )
    assert message.startswith(f"The activation at {HOOKS[0]}, row {row}, document {document}")
    assert tokens.ids[row, position] == 7
    assert tokens.document[row, position] == document


def test_an_activation_too_large_for_float16_is_named(tmp_path: Path) -> None:
    def enlarge_token_7(weight: Tensor) -> None:
        weight[7, 0] = 70_000

    model = model_with_embedding(enlarge_token_7)
    settings = {**SMALL, "dtype": "float16", "outlier_factor": None}
    with pytest.raises(DataError, match=r'too large for float16 \(6.55e\+04\).*dtype="bfloat16"'):
        harvest(model, rows_of_tokens(), HOOKS, tmp_path, **settings)


def test_tokens_with_nothing_kept_are_refused(tmp_path: Path) -> None:
    tokens = rows_of_tokens()
    tokens.kept[:] = False
    with pytest.raises(DataError, match="None of the 444 token positions is kept"):
        harvest(tiny_model(), tokens, HOOKS, tmp_path, **SMALL)


def test_positions_after_the_last_kept_one_change_nothing(tmp_path: Path) -> None:
    """Padding at the end is not run at all; the rest must not notice."""
    tokens = rows_of_tokens()
    tokens.kept[:, 8:] = False
    store = harvest(tiny_model(), tokens, HOOKS, tmp_path, **SMALL)
    found = store.rows(0, store.n_tokens)
    truth = tiny_model().activations(tokens.ids.long(), HOOKS)[HOOKS[0]]
    at = found.addresses
    assert at.position.max() == 7
    torch.testing.assert_close(found.activations, truth[at.row.long(), at.position.long()])


# --- the door --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows_per_batch": 0}, "rows_per_batch=0 and tokens_per_shard=96 must both be at least"),
        ({"dtype": "int8"}, "dtype='int8' cannot be stored; choose one of 'float32', 'bfloat16'"),
        ({"outlier_factor": 1.0}, "outlier_factor=1.0 would drop ordinary activations"),
        ({"token_per_shard": 5}, "no setting 'token_per_shard'. Did you mean 'tokens_per_shard'"),
        ({"hooks": []}, "No hook point was named"),
        ({"hooks": ["embedding", "embedding.output"]}, "named twice"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    asked = {"hooks": HOOKS, **SMALL, **settings}
    with pytest.raises(ConfigError, match=message):
        harvest(tiny_model(), rows_of_tokens(), folder=tmp_path / "acts", **asked)
    assert not (tmp_path / "acts").exists()


def test_a_hook_point_that_does_not_exist_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(HookPointError, match=r"blocks\.1"):
        harvest(tiny_model(), rows_of_tokens(), ["blocks.1.otput"], tmp_path / "acts")
    assert not (tmp_path / "acts").exists()


def test_one_hook_point_may_be_given_as_a_string(tmp_path: Path) -> None:
    store = harvest(tiny_model(), rows_of_tokens(), HOOKS[1], tmp_path, config=HarvestConfig())
    assert store.hooks == [HOOKS[1]]
    assert store.hook == HOOKS[1]


def test_progress_counts_kept_tokens_up_to_the_total(tmp_path: Path) -> None:
    tokens, calls = rows_of_tokens(), []
    with pytest.raises(Interrupted):
        harvest(tiny_model(), tokens, HOOKS, tmp_path, **SMALL, progress=stop_after(7))
    harvest(
        tiny_model(), tokens, HOOKS, tmp_path, **SMALL,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    counts = [done for done, _ in calls]
    assert counts == sorted(counts)
    assert counts[0] > tokens.n_kept / 2  # what was finished before counts as done
    assert calls[-1] == (tokens.n_kept, tokens.n_kept)


def test_folders_of_hook_points_are_safe_and_never_shared() -> None:
    names = ["a/b", "a_b", "A_B", "addresses", "..", "blocks.0.hook_resid_post"]
    folders = hook_folders(names)
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all("/" not in folder and not folder.startswith(".") for folder in folders)
    assert "addresses" not in folders
    assert folders[-1] == "blocks.0.hook_resid_post"
