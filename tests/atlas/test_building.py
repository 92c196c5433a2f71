"""Does an atlas come out the same however it was built, and is what cannot work refused?"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab.atlas import Atlas, AtlasConfig, build_atlas
from saelab.atlas import building as building_module
from saelab.atlas import joining as joining_module
from saelab.errors import CheckpointError, ConfigError, DataError, FolderBusyError, Interrupted
from saelab.files import folder_lock
from tests.atlas.cases import CONFIG, built, dictionary, model, signed, text

torch.set_num_threads(1)  # the last bits of a matrix product depend on it
ROOT = Path(__file__).parent.parent.parent


def hashes(atlas_or_folder) -> dict[str, str]:
    """SHA-256 of every table."""
    folder = getattr(atlas_or_folder, "folder", atlas_or_folder)
    from saelab.atlas.manifest import read_manifest

    return {name: one["sha256"] for name, one in read_manifest(Path(folder))["files"].items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return built(tmp_path_factory.mktemp("reference"))


def test_batches_bands_and_shards_do_not_change_what_is_found(reference, tmp_path):
    other = built(tmp_path, tokens_per_shard=10_000, band_pairs=100_000)
    for name in ("tails", "near_misses", "profiles", "labels", "cooccurrence", "logits"):
        one, two = (atlas.arrow(name).to_pydict() for atlas in (reference, other))
        for column, values in one.items():
            if any(isinstance(value, float) for value in values):
                number = [float("nan") if value is None else value for value in values]
                found = [float("nan") if value is None else value for value in two[column]]
                assert found == pytest.approx(number, rel=1e-4, nan_ok=True), (name, column)
            elif column not in ("activations", "quantile_edges"):
                assert two[column] == values, (name, column)


def test_building_again_opens_what_is_there(reference):
    before = {path: path.stat().st_mtime_ns for path in reference.folder.rglob("*.parquet")}
    again = built(reference.folder, fresh=True)
    assert {path: path.stat().st_mtime_ns for path in again.folder.rglob("*.parquet")} == before
    assert not (again.folder / "work").exists()


@pytest.mark.parametrize("stop_at", [1, 3, 9, 50, 56, 62])
def test_a_build_killed_between_any_two_writes_ends_with_the_same_tables(
    reference, tmp_path, monkeypatch, stop_at
):
    calls = {"n": 0}

    def killing(write):
        def wrapped(*arguments, **named):
            calls["n"] += 1
            if calls["n"] == stop_at:
                raise KeyboardInterrupt
            return write(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patch:
        for module in (building_module, joining_module):
            for name in ("write_json", "write_table", "join_parts", "write_tensors"):
                if hasattr(module, name):
                    patch.setattr(module, name, killing(getattr(module, name)))
        patch.setattr(
            "saelab.atlas.codes.write_tensors",
            killing(__import__("saelab.files", fromlist=["files"]).write_tensors),
        )
        with pytest.raises(Interrupted, match="Run the same command again"):
            built(tmp_path, fresh=True)
    assert hashes(built(tmp_path, fresh=True)) == hashes(reference)


PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.atlas.cases import built
    built(Path({folder!r}), fresh=True)
    """
)


def run(folder: Path, *prefix: str, **options) -> "subprocess.Popen[Any]":
    program = PROGRAM.format(root=str(ROOT), folder=str(folder))
    script = folder.parent / f"{folder.name}.py"
    script.write_text(program, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, *prefix, str(script)], env=environment, **options)


def test_a_process_killed_by_the_system_leaves_work_that_goes_on(reference, tmp_path):
    folder = tmp_path / "killed"
    process = run(folder)
    work = folder / "work"
    while process.poll() is None and not list(work.glob("*/codes/00001.json")):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(CheckpointError, match="is not finished"):
        Atlas.open(folder)
    assert hashes(built(folder, fresh=True)) == hashes(reference)


@pytest.mark.slow
def test_two_processes_build_the_atlas_of_one(reference, tmp_path):
    folder = tmp_path / "two"
    arguments = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = run(folder, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output.decode()
    assert hashes(folder) == hashes(reference)


def test_another_atlas_in_the_folder_is_not_overwritten_unless_asked(tmp_path):
    atlas = built(tmp_path)
    atlas.annotate(3, label="mine", starred=True)
    with pytest.raises(ConfigError, match=r"atlas of another tokens.*rebuild=True"):
        built(tmp_path, tokens=text(seed=1), fresh=True)
    config = AtlasConfig(**CONFIG.to_json())
    again = build_atlas(signed(), model(), text(seed=1), tmp_path, config, rebuild=True)
    assert hashes(again) != hashes(built(tmp_path.parent / f"{tmp_path.name}-other"))
    assert again.latent(3).label == "mine"
    with pytest.raises(ConfigError, match=r"another dictionary, with annotations.sqlite"):
        build_atlas(signed(seed=1), model(), text(), tmp_path, config, rebuild=True)


def test_a_folder_being_written_is_refused(tmp_path):
    with folder_lock(tmp_path), pytest.raises(FolderBusyError):
        built(tmp_path, fresh=True)


@pytest.mark.parametrize("harm", ["truncate", "alter", "remove"])
def test_a_damaged_table_is_found(tmp_path, harm):
    atlas = built(tmp_path, top=1)
    path = atlas.folder / "examples.parquet"
    content = path.read_bytes()
    if harm == "truncate":
        path.write_bytes(content[:-10])
    elif harm == "alter":
        path.write_bytes(content[:40] + bytes([content[40] ^ 255]) + content[41:])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"examples\.parquet"):
        Atlas.open(tmp_path, verify=True)


def test_codes_are_kept_only_if_asked(tmp_path):
    kept, not_kept = built(tmp_path / "a"), built(tmp_path / "b", keep_codes=False)
    assert list((kept.folder / "codes").iterdir())
    assert not (not_kept.folder / "codes").exists()


def test_text_with_nothing_to_measure_is_refused(tmp_path):
    tokens = text()
    nothing = dataclasses.replace(tokens, kept=torch.zeros_like(tokens.kept))
    with pytest.raises(DataError, match="positions are excluded"):
        built(tmp_path, tokens=nothing)


def test_a_dictionary_without_a_hook_point_is_refused(tmp_path):
    sae = dictionary()
    sae.hook = None
    with pytest.raises(ConfigError, match="does not say which hook point"):
        built(tmp_path, sae)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"before": -1}, "before=-1"),
        ({"outlier_factor": 0.5}, "would leave out ordinary"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        AtlasConfig(**settings)


def test_progress_counts_tokens_and_then_latents(tmp_path):
    seen = []
    build_atlas(signed(), model(), text(), tmp_path, CONFIG, lambda *one: seen.append(one))
    assert [what for _, _, what in seen] == sorted(what for _, _, what in seen)
    assert {what for _, _, what in seen} == {"contexts", "latents"}
    for what in ("contexts", "latents"):
        some = [(done, total) for done, total, name in seen if name == what]
        assert some[-1][0] == some[-1][1]
        assert [done for done, _ in some] == sorted(done for done, _ in some)
