"""The doctor finds what is broken, names the file, and says what to do; and only then."""

import json
from pathlib import Path

import pytest
import torch

from saelab import SAE, ActivationStore, CheckpointError, TopK, TrainConfig, train
from saelab.doctor import check_folder, check_installation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on random activations."""
    x = torch.randn(512, 8)
    train(
        SAE(8, 16, TopK(2)),
        ActivationStore.from_tensor(x),
        TrainConfig(tokens=1024, batch_size=128),
        tmp_path / "run",
    )
    return tmp_path / "run"


def statuses(folder: Path) -> dict[str, list[str]]:
    """Texts by status."""
    found: dict[str, list[str]] = {}
    for finding in check_folder(folder):
        found.setdefault(finding.status, []).append(f"{finding.subject}: {finding.text}")
    return found


def test_a_whole_run_is_fine(run):
    found = statuses(run)
    assert set(found) == {"ok"}
    assert any("finished after 1,024 tokens" in text for text in found["ok"])
    assert any("16 latents of width 8" in text for text in found["ok"])


def test_a_missing_weights_file_is_named(run):
    (run / "sae" / "sae_weights.safetensors").unlink()
    (text,) = statuses(run)["broken"]
    assert f"{run / 'sae' / 'sae_weights.safetensors'} is missing." in text


def test_an_altered_cfg_is_named(run):
    path = run / "sae" / "cfg.json"
    path.write_text(path.read_text().replace('"d_sae": 16', '"d_sae": 17'))
    (text,) = statuses(run)["broken"]
    assert f"{path} was altered" in text
    assert "finish the training run again" in text


def test_a_tensor_that_is_not_finite_is_named(tmp_path):
    sae = SAE(4, 8, TopK(2))
    with torch.no_grad():
        sae.b_enc[3] = float("nan")
    sae.save(tmp_path / "sae")
    (text,) = statuses(tmp_path)["broken"]
    assert "b_enc in" in text
    assert "NaN" in text


def test_a_truncated_checkpoint_is_named_with_a_remedy(run):
    (state,) = (run / "checkpoints").glob("*/state.safetensors")
    state.write_bytes(state.read_bytes()[:-10])
    (text,) = statuses(run)["broken"]
    assert str(state) in text
    assert "Delete the checkpoint" in text


def test_a_log_line_cut_by_a_kill_is_a_note(run):
    path = run / "metrics.jsonl"
    lines = len(path.read_text().splitlines())
    with path.open("a") as log:
        log.write('{"step": 9, "lo')
    (text,) = statuses(run)["note"]
    assert f"{path}, line {lines + 1}, is not JSON" in text


def test_an_unfinished_run_is_a_note_that_says_how_to_go_on(run):
    import shutil

    shutil.rmtree(run / "sae")
    (text,) = statuses(run)["note"]
    assert "1,024 of 1,024 tokens are saved" in text
    assert "same command again" in text


def test_files_left_by_a_killed_process_are_a_note(run):
    (run / ".run.json.123.tmp").write_text("half")
    (text,) = statuses(run)["note"]
    assert ".run.json.123.tmp" in text


def test_an_evaluation_that_was_edited_is_broken(run):
    (run / "evaluation.json").write_text(json.dumps({"format": "saelab-evaluation"}))
    (text,) = statuses(run)["broken"]
    assert "Evaluate again" in text


def test_a_folder_with_nothing_of_ours_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="holds nothing that saelab wrote"):
        check_folder(tmp_path)


def test_the_installation_is_looked_at_without_importing_anything_heavy():
    subjects = [finding.subject for finding in check_installation()]
    for subject in ("python", "cpu", "bfloat16", "default model", "default text", "cache"):
        assert subject in subjects


def test_a_missing_package_is_broken_and_the_command_is_given(monkeypatch):
    from saelab import doctor

    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["nosuchthing>=2", "torch>=999"])
    monkeypatch.setattr(doctor, "_version_of_saelab", lambda: "0.1.0")
    found = [finding for finding in check_installation() if finding.status == "broken"]
    assert [finding.subject for finding in found] == ["nosuchthing", "torch"]
    assert "pip install 'nosuchthing>=2'" in found[0].text
    assert "saelab needs >=999" in found[1].text
