"""Are activations served completely, in a reproducible order, and refused when damaged?"""

import itertools
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelab.errors import ConfigError, CorpusError, DataError, ShapeError, StoreError
from saelab.harvesting import harvest
from saelab.store import ActivationStore, HarvestConfig, estimate_bytes
from saelab.store.mixing import expected_distinct
from saelab.store.serving import serve
from saelab.store.shuffling import load_ahead
from tests.harvest_cases import HOOKS, SMALL, contents, rows_of_tokens, tiny_model

KINDS = ["memory", "folder", "stream"]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "acts"
    harvest(tiny_model(), rows_of_tokens(), HOOKS, folder, **SMALL, outlier_factor=None)
    return folder


@pytest.fixture
def copied(harvested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(harvested, tmp_path / "acts"))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, harvested: Path) -> ActivationStore:
    opened = ActivationStore.open(harvested)
    if request.param == "folder":
        return opened
    if request.param == "memory":
        everything = opened.rows(0, opened.n_tokens, HOOKS).activations
        return ActivationStore.from_tensor(everything)
    config = HarvestConfig(**SMALL, outlier_factor=None)
    return ActivationStore.stream(tiny_model(), rows_of_tokens(), HOOKS, config)


def sorted_rows(x: Tensor) -> Tensor:
    return torch.tensor(sorted(x.tolist()))


# --- every kind of store keeps the same promises ---------------------------------------------


def test_the_store_knows_its_size_and_hook_points(store: ActivationStore) -> None:
    assert store.n_tokens == rows_of_tokens().n_kept
    assert (store.hooks, store.hook, store.d_in) == (HOOKS, HOOKS[0], 16)
    assert store.at(HOOKS[1]).hook == HOOKS[1]
    assert store.identity["n_tokens"] == store.n_tokens
    assert json.loads(json.dumps(store.identity)) == store.identity


def test_an_epoch_serves_every_row_once(store: ActivationStore) -> None:
    n = store.n_tokens
    one_epoch = next(store.batches(n, window_tokens=100)).activations
    stored = store.rows(0, n).activations
    torch.testing.assert_close(sorted_rows(one_epoch), sorted_rows(stored), rtol=0, atol=0)


def test_epochs_differ_in_order_and_never_give_a_short_batch(store: ActivationStore) -> None:
    n = store.n_tokens
    first, second = itertools.islice(store.batches(n, window_tokens=100), 2)
    assert len(first.activations) == len(second.activations) == n
    assert not torch.equal(first.activations, second.activations)
    assert torch.equal(sorted_rows(first.activations), sorted_rows(second.activations))


@pytest.mark.parametrize("served", [1, 7, 30])
def test_a_cursor_continues_with_the_same_bits(store: ActivationStore, served: int) -> None:
    whole = list(itertools.islice(store.batches(33, seed=3, window_tokens=80), 35))
    cursor = whole[served - 1].cursor
    assert cursor == served * 33
    rest = store.batches(33, seed=3, window_tokens=80, cursor=cursor)
    for batch in whole[served:]:
        again = next(rest)
        assert again.cursor == batch.cursor
        assert torch.equal(again.activations, batch.activations)


def test_the_batch_size_may_change_at_a_cursor(store: ActivationStore) -> None:
    ten = torch.cat([b.activations for b in itertools.islice(store.batches(10), 4)])
    forty = next(store.batches(40)).activations
    assert torch.equal(ten, forty)


def test_the_order_depends_on_the_seed(store: ActivationStore) -> None:
    one, same, other = (next(store.batches(50, seed=s)).activations for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_paired_hook_points_stay_aligned(store: ActivationStore) -> None:
    pair = next(store.batches(64, hooks=HOOKS)).activations
    for hook in HOOKS:
        assert torch.equal(pair[hook], next(store.at(hook).batches(64)).activations)


def test_a_sample_holds_rows_of_the_store_in_float32(store: ActivationStore) -> None:
    rows = set(map(tuple, store.rows(0, store.n_tokens).activations.tolist()))
    sample = store.sample(20, seed=1)
    assert sample.shape == (20, 16)
    assert sample.dtype == torch.float32
    assert set(map(tuple, sample.tolist())) <= rows
    assert torch.equal(sample, store.sample(20, seed=1))
    assert not torch.equal(sample, store.sample(20, seed=2))
    assert len(store.sample(10**6)) == store.n_tokens


def test_iterating_serves_the_stored_order(store: ActivationStore) -> None:
    parts = list(store.iterate(50))
    whole = store.rows(0, store.n_tokens)
    assert [len(part.addresses) for part in parts[:-1]] == [50] * (len(parts) - 1)
    assert torch.equal(torch.cat([part.activations for part in parts]), whole.activations)
    assert torch.equal(torch.cat([p.addresses.row for p in parts]), whole.addresses.row)


def test_taking_the_first_tokens_keeps_whole_chunks(store: ActivationStore) -> None:
    part = store.take(30)
    assert 30 <= part.n_tokens < store.n_tokens
    expected = store.rows(0, part.n_tokens).activations
    assert torch.equal(part.rows(0, part.n_tokens).activations, expected)
    served = next(part.batches(part.n_tokens)).activations
    assert torch.equal(sorted_rows(served), sorted_rows(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.batches(0), "batch_size=0 must be at least 1"),
        (lambda s: s.batches(8, cursor=-1), "cursor=-1 must be at least 0"),
        (lambda s: s.batches(8, window_tokens=0), "window_tokens=0 must be at least 1"),
        (lambda s: s.at("blocks.9"), r"no activations at 'blocks.9'; it has embedding.output"),
        (lambda s: s.rows(5, 10**6), r"rows\(5, 1000000\) is not within 0 to"),
        (lambda s: s.take(10**6), r"take\(1000000\) asks for more"),
        (lambda s: s.sample(0), r"sample\(0\) asks for no rows"),
    ],
)
def test_impossible_requests_are_refused_at_once(store: ActivationStore, call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call(store)


def test_at_most_two_windows_are_in_memory() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def load(size: int) -> tuple[dict[str, Tensor], Tensor]:
        nonlocal most
        x = torch.zeros(size, 2)
        alive.append(weakref.ref(x))
        most = max(most, sum(one() is not None for one in alive))
        return {"a": x}, torch.arange(size)

    loaded = load_ahead(itertools.repeat(10), load, in_background=True)
    list(itertools.islice(serve(loaded, 7, 0), 40))
    assert len(alive) >= 28
    assert most <= 2


# --- what is stored --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_every_row_is_the_model_s_activation_at_its_address(harvested: Path, kind: str) -> None:
    model, tokens = tiny_model(), rows_of_tokens()
    config = HarvestConfig(**SMALL, outlier_factor=None)
    store = (
        ActivationStore.open(harvested)
        if kind == "folder"
        else ActivationStore.stream(model, tokens, HOOKS, config)
    )
    found = store.rows(0, store.n_tokens, HOOKS)
    at = found.addresses
    truth = model.activations(tokens.ids.long(), HOOKS)
    row, position = at.row.long(), at.position.long()
    for hook in HOOKS:
        torch.testing.assert_close(found.activations[hook], truth[hook][row, position])
    assert torch.equal(at.token, tokens.ids[row, position])
    assert torch.equal(at.document, tokens.document[row, position])
    assert tokens.kept[row, position].all()
    assert len(set(zip(row.tolist(), position.tolist(), strict=True))) == tokens.n_kept


def test_streaming_and_the_disk_hold_the_same_rows(harvested: Path) -> None:
    config = HarvestConfig(**SMALL, outlier_factor=None)
    stream = ActivationStore.stream(tiny_model(), rows_of_tokens(), HOOKS, config)
    disk = ActivationStore.open(harvested)
    n = disk.n_tokens
    assert torch.equal(stream.rows(0, n).activations, disk.rows(0, n).activations)


def test_streaming_serves_an_ordinary_position_in_place_of_an_outlier() -> None:
    tokens = rows_of_tokens()
    model = tiny_model()
    with torch.no_grad():
        model.module.embedding.weight[7] *= 1000  # pyright: ignore[reportAttributeAccessIssue]
    store = ActivationStore.stream(model, tokens, HOOKS, HarvestConfig(**SMALL))
    found = store.rows(0, store.n_tokens)
    assert store.n_tokens == tokens.n_kept
    assert not (found.addresses.token == 7).any()
    assert (tokens.ids[tokens.kept] == 7).any()
    truth = model.activations(tokens.ids.long(), HOOKS)[HOOKS[0]]
    at = found.addresses
    assert torch.equal(found.activations, truth[at.row.long(), at.position.long()])


def test_the_copy_of_the_tokens_is_the_tokens(harvested: Path) -> None:
    tokens = ActivationStore.open(harvested).tokens
    assert tokens is not None
    assert tokens.sha256 == rows_of_tokens().sha256


def test_a_shard_is_a_random_sample_of_the_documents(tmp_path: Path) -> None:
    tokens = rows_of_tokens(rows=400)
    store = harvest(
        tiny_model(), tokens, HOOKS[:1], tmp_path, rows_per_batch=4, tokens_per_shard=600
    )
    first = store.rows(0, 500).addresses
    assert len(first.row.unique()) > 40
    assert first.document.double().mean() == pytest.approx(50, abs=15)  # documents 0..99


def test_the_estimate_is_just_above_what_a_harvest_takes(tmp_path: Path) -> None:
    tokens = rows_of_tokens(rows=2000)
    sizes = {"tokens_per_shard": 4096, "dtype": "bfloat16", "outlier_factor": None}
    store = harvest(tiny_model(), tokens, HOOKS, tmp_path, **sizes)
    taken = sum(len(data) for data in contents(tmp_path).values())
    estimate = estimate_bytes(tokens, list(store.widths.values()), "bfloat16", 4096)
    assert taken <= estimate <= taken * 1.05


# --- damage ----------------------------------------------------------------------------------


def shard(folder: Path, hook: str = HOOKS[0], index: int = 1) -> Path:
    return folder / hook / f"{index:05d}.safetensors"


def read_all(folder: Path) -> None:
    store = ActivationStore.open(folder)
    store.rows(0, store.n_tokens)


def test_an_untouched_store_verifies(harvested: Path) -> None:
    ActivationStore.open(harvested).verify()


def test_a_truncated_shard_is_named(copied: Path) -> None:
    path = shard(copied)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match=r"00001.safetensors is truncated: \d+ bytes, and the"):
        read_all(copied)


def test_a_flipped_byte_is_found_the_first_time_a_shard_is_read(copied: Path) -> None:
    path = shard(copied)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"00001.safetensors was altered .* SHA-256 differs"):
        read_all(copied)
    with pytest.raises(StoreError, match=r"00001.safetensors was altered .* SHA-256 differs"):
        ActivationStore.open(copied).verify()
    with pytest.raises(StoreError, match="was altered"):
        list(itertools.islice(ActivationStore.open(copied).batches(50), 20))
    ActivationStore.open(copied, verify="never").rows(0, 100)


def test_a_flipped_byte_in_the_addresses_is_found(copied: Path) -> None:
    path = copied / "addresses" / "00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"addresses/00000.safetensors was altered"):
        read_all(copied)


def test_a_shard_of_another_dtype_is_named(copied: Path) -> None:
    path = shard(copied)
    save_file({"activations": load_file(path)["activations"].half()}, path)
    with pytest.raises(StoreError, match="holds float16 activations, and the manifest says float3"):
        read_all(copied)


def test_a_shard_of_another_width_is_named(copied: Path) -> None:
    path = shard(copied)
    save_file({"activations": load_file(path)["activations"][:, :8].contiguous()}, path)
    with pytest.raises(StoreError, match=r"shape \(\d+, 8\), and the manifest says \(\d+, 16\)"):
        read_all(copied)


def test_a_missing_shard_is_named(copied: Path) -> None:
    shard(copied).unlink()
    with pytest.raises(StoreError, match=r"00001.safetensors is missing, though the manifest"):
        read_all(copied)


def test_something_else_in_a_shard_s_place_is_refused(copied: Path) -> None:
    shard(copied).write_bytes(b"\xff" * shard(copied).stat().st_size)
    with pytest.raises(StoreError, match="was altered after it was written"):
        read_all(copied)


def test_altered_tokens_are_found(copied: Path) -> None:
    path = copied / "tokens" / "00000" / "tokens.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"tokens.safetensors is not the file that was written"):
        ActivationStore.open(copied).verify()


def test_a_missing_manifest_is_named(copied: Path) -> None:
    (copied / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"No activation store at .*manifest.json is missing"):
        ActivationStore.open(copied)


def test_an_altered_manifest_is_refused(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "float16"', 1))
    with pytest.raises(StoreError, match=r"manifest.json was altered .* checksum differs"):
        ActivationStore.open(copied)


def test_a_newer_manifest_is_refused(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(
        StoreError, match=r"has format version 2; this saelab reads up to 1\. Upgrade"
    ):
        ActivationStore.open(copied)


def test_a_copied_store_can_be_read(copied: Path, harvested: Path) -> None:
    assert ActivationStore.open(copied).identity == ActivationStore.open(harvested).identity


# --- activations in memory -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 4), ShapeError, r"must be \[token, width\]; got shape \(2, 3, 4\)"),
        (torch.zeros(0, 4), DataError, "must be floating point and not empty"),
        (torch.zeros(3, 4, dtype=torch.int64), DataError, "must be floating point and not empty"),
        (torch.tensor([[1.0], [torch.nan]]), DataError, "row 1 is not finite"),
        (torch.tensor([[torch.inf], [1.0]]), DataError, "row 0 is not finite"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, ShapeError, "same number of rows"),
        ({}, ConfigError, "was given no activations"),
    ],
)
def test_unusable_tensors_are_refused(x, error, message) -> None:
    with pytest.raises(error, match=message):
        ActivationStore.from_tensor(x)


def test_a_tensor_in_bfloat16_is_served_in_float32() -> None:
    x = torch.randn(10, 3).bfloat16()
    batch = next(ActivationStore.from_tensor(x).batches(10)).activations
    assert torch.equal(sorted_rows(batch), sorted_rows(x.float()))


def test_the_identity_of_a_tensor_is_its_content() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    same, other = x.clone(), x + 1
    digest = ActivationStore.from_tensor(x).identity["sha256"]
    assert ActivationStore.from_tensor(same).identity["sha256"] == digest
    assert ActivationStore.from_tensor(other).identity["sha256"] != digest


# --- mixing ----------------------------------------------------------------------------------


def test_the_expected_number_of_groups_is_that_of_a_full_shuffle() -> None:
    # Three rows, two groups {a, a, b}, batches of 2: ab, ab, aa -> (2 + 2 + 1) / 3.
    assert expected_distinct(torch.tensor([2, 1]), 2) == pytest.approx(5 / 3)
    assert expected_distinct(torch.tensor([2, 1]), 3) == pytest.approx(2)


def test_a_wide_window_mixes_like_a_full_shuffle_and_a_narrow_one_does_not(
    tmp_path: Path,
) -> None:
    tokens = rows_of_tokens(rows=800)
    store = harvest(
        tiny_model(), tokens, HOOKS[:1], tmp_path, rows_per_batch=4, tokens_per_shard=400
    )
    wide = store.mixing(400, window_tokens=10**6)
    narrow = store.mixing(400, window_tokens=400)
    assert wide.quality == pytest.approx(1, abs=0.05)
    assert narrow.quality < 0.5
    assert wide.rows_full_shuffle == narrow.rows_full_shuffle


def test_a_window_that_is_too_small_gives_a_warning() -> None:
    store = ActivationStore.from_tensor(torch.randn(1000, 2))
    assert store.warnings(10) == []
    assert "shuffle window (20 tokens) is too small" in store.warnings(10, 20)[0]
    assert "larger than the store (1000 tokens)" in store.warnings(2000, 10**6)[0]
