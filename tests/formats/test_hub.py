"""Known dictionaries by name, from a hub and to one; the hub is a small server on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saelab import CheckpointError, FormatError, formats
from saelab.formats import registry
from saelab.formats.hub import download, upload
from saelab.formats.registry import KnownDictionary, find
from tests.formats.cases import GOLDEN, dictionary
from tests.formats.hub_stub import local_hub

REGISTRY = """
small-things:
  repo_id: someone/small-things
  model: gpt2-small
  saes:
  - {id: topk, path: nested/topk, l0: 4.0, variance_explained: 0.9}
  - {id: gone, path: nested/gone}
learned:
  repo_id: someone/small-things
  model: pythia-70m
  conversion_func: dictionary_learning_1
  saes:
  - {id: a/b, path: learned/trainer_0}
mine:
  repo_id: someone/small-things
  model: tiny
  format: sparsify
  saes:
  - {id: skip, path: layers.3.mlp}
missing:
  repo_id: someone/nothing
  saes:
  - {id: topk, path: topk}
"""


COMMANDS = """
import contextlib, io, json, sys
from saelab.cli import main
done = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    done.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""
Done = list[tuple[int, str, str]]
"""Status, output and complaint of each command."""


def saelab(where: Path, address: str, *commands: list[object]) -> Done:
    """Run command lines where the hub is at this address; one process, as imports are slow."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(where / "cache"),
        "HF_TOKEN": "hf_stub",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
    }
    words = json.dumps([[str(word) for word in command] for command in commands])
    ran = subprocess.run(
        [sys.executable, "-c", COMMANDS, words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=where,
    )
    assert ran.returncode == 0, ran.stderr
    return [(status, out, err) for status, out, err in json.loads(ran.stdout)]


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done, Done]:
    """What was done while the hub was there, and after it was gone."""
    where = tmp_path_factory.mktemp("hub")
    repo = where / "hub" / "someone" / "small-things"
    shutil.copytree(GOLDEN / "saelens/theirs/topk", repo / "nested/topk")
    shutil.copytree(GOLDEN / "dictionary_learning/theirs/BatchTopKSAE", repo / "learned/trainer_0")
    shutil.copytree(GOLDEN / "sparsify/theirs/skip/layers.3.mlp", repo / "layers.3.mlp")
    (where / "registry.yaml").write_text(REGISTRY)
    dictionary("topk").save(where / "own")
    listed = ["--registry", where / "registry.yaml"]
    first = ["import", "small-things/topk", *listed, "--out", where / "topk"]
    upload_words = ["--out", where / "out", "--to-hub", "me/mine", "--path-in-repo", "layer_3"]
    with local_hub(where / "hub") as address:
        online = saelab(
            where,
            address,
            first,
            ["import", "small-things/gone", *listed],
            ["import", "missing/topk", *listed],
            ["import", "mine/skip", *listed, "--out", where / "skip"],
            ["export", where / "own", *upload_words],
        )
    offline = saelab(where, address, first, ["import", "learned/a/b", *listed])
    return where, online, offline


def test_a_known_dictionary_comes_from_the_hub(visits: tuple[Path, Done, Done]) -> None:
    where, ((status, out, err), *_), _ = visits
    assert status == 0, err
    assert "saelens: 6 -> 16 latents -> 6, TopK(k=4)" in out
    assert "Recorded: l0 4, explained_variance 0.9" in out
    sae = formats.read(where / "topk")
    assert sae.metadata["imported"]["from"] == "someone/small-things/nested/topk"
    assert sae.metadata["imported"]["recorded"]["explained_variance"] == 0.9
    fetched = {path.name for path in (where / "cache").rglob("snapshots/*/nested/topk/*")}
    assert fetched == {"cfg.json", "sae_weights.safetensors"}, "only what is needed is fetched"


def test_it_comes_from_the_cache_when_the_hub_is_gone(visits: tuple[Path, Done, Done]) -> None:
    _, _, ((status, out, err), _) = visits
    assert status == 0, err
    assert "TopK(k=4)" in out


def test_a_layout_is_told_by_the_registry(visits: tuple[Path, Done, Done]) -> None:
    where, (*_, (status, _, err), _), _ = visits
    assert status == 0, err
    assert formats.read(where / "skip").hook_out == "layers.3.mlp.output"


def test_what_cannot_be_fetched_is_said_in_one_line(visits: tuple[Path, Done, Done]) -> None:
    _, (_, gone, missing, *_), (_, offline) = visits
    for (status, out, err), reason in (
        (gone, "someone/small-things was reached, and has no nested/gone"),
        (missing, "there is no such repository, or it is private"),
        (offline, "the hub cannot be reached from here"),
    ):
        assert (status, out) == (2, "")
        (line,) = [line for line in err.splitlines() if line.startswith("saelab:")]
        assert reason in line
        assert "Traceback" not in err


def test_an_export_goes_to_the_hub_and_comes_back(visits: tuple[Path, Done, Done]) -> None:
    where, (*_, (status, out, err)), _ = visits
    assert status == 0, err
    assert "Uploaded: http" in out
    uploaded = where / "hub" / "me" / "mine" / "layer_3"
    for name in ("cfg.json", "sae_weights.safetensors", "README.md"):
        assert (uploaded / name).read_bytes() == (where / "out" / name).read_bytes()
    assert "library_name: saelens" in (uploaded / "README.md").read_text()
    assert formats.read(uploaded).hook == "blocks.3.hook_resid_post"


def test_without_a_network_download_and_upload_say_so(tmp_path: Path) -> None:
    known = find("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached from here"):
        download(known)
    formats.export(dictionary("topk"), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"Cannot upload .*me/mine: the hub cannot be reached"
    ):
        upload(tmp_path, "me/mine")
    with pytest.raises(FormatError, match="nothing to upload"):
        upload(tmp_path / "empty", "me/mine")


# the registry


def test_every_entry_of_our_registry_can_be_found_and_is_readable() -> None:
    count = 0
    for name, release in registry.releases().items():
        for entry in release["saes"]:
            known = find(f"{name}/{entry['id']}")
            assert isinstance(known, KnownDictionary)
            assert known.format in formats.FORMATS
            count += 1
    assert count > 200


def test_an_entry_says_everything_that_is_published_about_it() -> None:
    known = find("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert (known.repo_id, known.format) == ("jbloom/GPT2-Small-SAEs-Reformatted", "saelens")
    assert known.model_settings == {"center_writing_weights": True}
    assert known.recorded == {"l0": 60.0, "explained_variance": 0.9}
    scope = find("gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical")
    assert scope.path == "layer_20/width_16k/average_l0_71"
    assert scope.files == ["layer_20/width_16k/average_l0_71/params.npz"]


def test_one_file_of_a_set_brings_its_configuration() -> None:
    known = find("mwhanna-qwen3-0.6b-transcoders-lowl0/layer_5")
    assert known.files == ["layer_5.safetensors", "config.yaml"]


def test_a_registry_of_ones_own_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(REGISTRY)
    assert find("mine/skip", tmp_path / "mine.yaml").format == "sparsify"
    assert find("learned/a/b", tmp_path / "mine.yaml").files == [
        "learned/trainer_0/ae.pt",
        "learned/trainer_0/config.json",
    ]
    assert find("pythia-70m-deduped-res-sm/blocks.0.hook_resid_pre", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2-smal-res-jb/blocks.8", "no release .* is known. There is gpt2-small-res-jb"),
        ("gpt2-small-res-jb/blocks.80.hook_resid_pre", "13 dictionaries, .* is not among them"),
    ],
)
def test_a_name_that_is_not_known_gets_the_nearest_ones(name: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        find(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversion_func": "temporal"}, "which saelab does not read"),
        (
            {"config_overrides": {"normalize_activations": "layer_norm"}},
            "changes what they compute",
        ),
        ({"saes": [{"id": "a", "path": "../../etc"}]}, "outside its repository"),
        ({"saes": "a"}, "needs repo_id and saes"),
        ({"repo_id": 3}, "needs repo_id and saes"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused(change, reason, tmp_path: Path) -> None:
    entry = {"repo_id": "x/y", "saes": [{"id": "a", "path": "a"}], **change}
    (tmp_path / "r.yaml").write_text(json.dumps({"release": entry}))
    with pytest.raises(FormatError, match=reason):
        find("release/a", tmp_path / "r.yaml")
