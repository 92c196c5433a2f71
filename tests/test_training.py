import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kill_training import kill_trainings
from saelab.activation_functions import ReLU, TopK
from saelab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FolderBusyError,
    Interrupted,
)
from saelab.files import folder_lock
from saelab.kernels import backend_name
from saelab.metrics import fvu
from saelab.objectives import AuxK, Reconstruction
from saelab.planted import PlantedAtoms, recovery
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer, train
from saelab.training.checkpoints import latest_checkpoint
from saelab.training.config import TrainConfig
from saelab.training.run_logs import read_jsonl

PLANTED = PlantedAtoms(d=16, n_atoms=24, l0=2.0, exact=True)
SMALL = TrainConfig(
    tokens=6400,
    batch_size=64,
    lr=3e-3,
    log_every_tokens=640,
    checkpoint_every_tokens=1600,
    dead_after_tokens=640,
)


def small_store(n=2000):
    return ActivationStore.from_tensor(PLANTED.sample(n, seed=1), hook="planted")


def small_sae(**settings):
    return SAE(16, 48, TopK(2), **settings)


def weights(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_spends_its_budget_and_learns():
    result = train(small_sae(), small_store(), SMALL)
    assert result.metrics[-1]["tokens"] == 6400
    assert result.metrics[-1]["fvu"] < 0.5 * result.metrics[0]["fvu"]
    assert [row["step"] for row in result.metrics] == list(range(10, 101, 10))


def test_the_same_seeds_give_the_same_bits_and_another_order_does_not():
    one, again, other = small_sae(), small_sae(), small_sae()
    train(one, small_store(), SMALL)
    train(again, small_store(), SMALL)
    train(other, small_store(), replace(SMALL, seed=1))
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))


def test_decoder_directions_have_norm_one_after_every_step():
    trainer = Trainer(small_sae(), small_store(), SMALL)
    for _ in range(5):
        trainer.step()
        torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(48))


def test_one_step_follows_the_reference_order():
    """Project, clip, Adam, renormalize: recomputed with autograd and torch's own Adam."""
    trainer = Trainer(small_sae(), small_store(), replace(SMALL, clip=0.01))
    sae = trainer.sae
    reference = SAE(16, 48, TopK(2))
    reference.load_state_dict(weights(sae))
    reference.normalization = sae.normalization
    batch = next(small_store().batches(64, seed=0)).activations * sae.normalization.scale_in
    recons = reference.forward_pairs(batch).recons
    ((batch - recons).square().sum(1).mean() / trainer.variance).backward()
    gradient = reference.W_dec.grad
    assert gradient is not None
    with torch.no_grad():
        gradient -= (gradient * reference.W_dec).sum(1, keepdim=True) * reference.W_dec
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    row = trainer.step()
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4) and norm > 0.01
    torch.optim.Adam(reference.parameters(), lr=row["lr"], eps=6.25e-10).step()
    with torch.no_grad():
        reference.W_dec.div_(reference.W_dec.norm(dim=1, keepdim=True))
    for name, value in weights(reference).items():
        torch.testing.assert_close(weights(sae)[name], value, rtol=1e-4, atol=1e-6)


def test_dead_latents_are_counted_in_tokens_since_they_last_fired():
    trainer = Trainer(small_sae(), small_store(), SMALL)
    with torch.no_grad():
        trainer.sae.b_enc[7] = -1e6
    for _ in range(3):
        trainer.step()
    assert trainer.since_fired[7] == 3 * 64
    assert (trainer.since_fired % 64 == 0).all() and (trainer.since_fired == 0).any()


def test_a_run_folder_holds_logs_a_checkpoint_and_the_dictionary(tmp_path):
    sae = small_sae()
    result = train(sae, small_store(), SMALL, tmp_path / "run")
    run = tmp_path / "run"
    assert read_jsonl(run / "metrics.jsonl") == result.metrics
    assert json.loads((run / "run.json").read_text())["config"]["tokens"] == 6400
    assert latest_checkpoint(run / "checkpoints") == run / "checkpoints" / "00000100"
    loaded = SAE.load(run / "sae")
    x = PLANTED.sample(50, seed=3)
    assert torch.equal(loaded(x), sae(x))
    assert loaded.metadata["training"]["tokens"] == 6400


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    straight = train(small_sae(), small_store(), SMALL).sae

    class Stop(Exception):
        pass

    def stop_at(limit):
        def progress(done, *_):
            if done >= limit:
                raise Stop

        return progress

    for limit in (300, 1664, 5000):
        with pytest.raises(Stop):
            train(small_sae(), small_store(), SMALL, tmp_path / "run", progress=stop_at(limit))
    resumed = train(small_sae(), small_store(), SMALL, tmp_path / "run")
    assert same(weights(straight), weights(resumed.sae))
    assert straight.normalization == resumed.sae.normalization
    assert [row["step"] for row in resumed.metrics] == list(range(10, 101, 10))


def test_a_run_killed_at_random_moments_ends_with_the_same_files(tmp_path):
    report = kill_trainings(tmp_path, kills=3)
    assert report.kills == 3
    assert report.differences == []


def test_running_a_finished_run_again_changes_nothing(tmp_path):
    train(small_sae(), small_store(), SMALL, tmp_path / "run")
    before = (tmp_path / "run/sae/sae_weights.safetensors").read_bytes()
    again = train(small_sae(), small_store(), SMALL, tmp_path / "run")
    assert (tmp_path / "run/sae/sae_weights.safetensors").read_bytes() == before
    assert len(again.metrics) == 10


def test_a_folder_with_other_settings_is_refused_with_the_difference(tmp_path):
    train(small_sae(), small_store(), SMALL, tmp_path / "run")
    other = replace(SMALL, lr=0.5)
    with pytest.raises(ConfigError, match=r"config\.lr: 0\.003 there, 0\.5 asked"):
        train(small_sae(), small_store(), other, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"sae\.d_sae: 48 there, 20 asked"):
        train(SAE(16, 20, TopK(2)), small_store(), SMALL, tmp_path / "run")
    with pytest.raises(ConfigError, match="terms"):
        terms = [Reconstruction()]
        train(small_sae(), small_store(), SMALL, tmp_path / "run", terms=terms)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(small_sae(), small_store(), SMALL, tmp_path / "run")
    state = tmp_path / "run/checkpoints/00000100/state.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        train(small_sae(), small_store(), SMALL, tmp_path / "run")


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    code = (
        "import sys, time; from saelab.files import folder_lock\n"
        f"with folder_lock({str(tmp_path / 'run')!r}): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FolderBusyError, match=rf"another process \(pid {other.pid}\)"):
            train(small_sae(), small_store(), SMALL, tmp_path / "run")
        other.kill()
    with folder_lock(tmp_path / "run"):
        pass


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    def progress(done, *_):
        if done == 640:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"SIGTERM: stopped after 640 of 6,400 .*go on exactly"):
        train(small_sae(), small_store(), SMALL, tmp_path / "run", progress=progress)
    assert latest_checkpoint(tmp_path / "run/checkpoints") is not None
    resumed = train(small_sae(), small_store(), SMALL, tmp_path / "run")
    assert same(weights(resumed.sae), weights(train(small_sae(), small_store(), SMALL).sae))


def test_activations_that_are_not_finite_stop_training(tmp_path):
    store = small_store()
    trainer = Trainer(small_sae(), store, SMALL, tmp_path / "run")
    with torch.no_grad():
        trainer.sae.b_dec[0] = float("nan")
    with pytest.raises(DataError, match="loss became nan at step 1"):
        trainer.step()


def test_constant_activations_have_nothing_to_learn():
    with pytest.raises(DataError, match="constant or not finite"):
        train(small_sae(), ActivationStore.from_tensor(torch.ones(100, 16)), SMALL)


def test_the_wrong_width_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="reads width 17 but the store holds planted of width 16"):
        train(SAE(17, 48, TopK(2)), small_store(), SMALL, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A real refusal by the system: the process may not write files over 20 kB."""
    code = f"""
import resource, sys
from saelab.errors import DiskFullError
from tests.test_training import *
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    train(small_sae(), small_store(), SMALL, {str(tmp_path / "run")!r})
except DiskFullError as error:
    print(error)
"""
    sae = small_sae()
    limit = replace(SMALL, checkpoint_every_tokens=1600)

    def stop(done, *_):
        if done > 1600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(sae, small_store(), limit, tmp_path / "run", progress=stop)
    before = latest_checkpoint(tmp_path / "run/checkpoints")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert "No room to write" in done.stdout, done.stderr
    assert latest_checkpoint(tmp_path / "run/checkpoints") == before
    resumed = train(small_sae(), small_store(), SMALL, tmp_path / "run")
    assert same(weights(resumed.sae), weights(train(small_sae(), small_store(), SMALL).sae))


def test_many_dead_latents_are_warned_about_once():
    config = replace(SMALL, dead_after_tokens=64)
    with pytest.warns(UserWarning, match="of the latents fired on none of the last 64 tokens"):
        result = train(SAE(16, 2000, TopK(2)), small_store(), config)
    assert [event["kind"] for event in result.events].count("dead") == 1


def test_a_shuffle_window_that_is_too_small_is_warned_about():
    with pytest.warns(UserWarning, match=r"shuffle window \(100 tokens\) is too small"):
        result = train(small_sae(), small_store(), replace(SMALL, window_tokens=100))
    assert [event["kind"] for event in result.events] == ["window"]


def test_too_few_active_latents_are_warned_about():
    sae = SAE(16, 48, TopK(40))
    with pytest.warns(UserWarning, match=r"latents are active where 40 are asked for"):
        train(sae, small_store(), SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, r"tokens=0\) must be positive"),
        ({"tokens": 10, "batch_size": 11}, "not one step fits"),
        ({"warmup": 1.5}, "share of the budget"),
        ({"lr": -1.0}, "must be positive"),
        ({"mirrors": ("paper",)}, "unknown \\['paper'\\]"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_training_imports_neither_wandb_nor_tensorboard():
    code = (
        "import sys; from tests.test_training import *\n"
        "train(small_sae(), small_store(), SMALL)\n"
        "print([m for m in ('wandb', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def one_thread():
    """Small matrices gain nothing from a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted_run(d_sae, terms, store, untied):
    sae = SAE(64, d_sae, TopK(5))
    if untied:
        directions = SAE(64, d_sae, TopK(5), seed=9).W_dec
        with torch.no_grad():
            sae.W_enc.copy_(directions.T)
    config = TrainConfig(
        tokens=2000 * 512, batch_size=512, lr=1e-3, warmup=0.0, dead_after_tokens=10_240
    )
    train(sae, store, config, terms=terms)
    return sae


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*of the latents fired on none")
def test_planted_atoms_come_back_and_auxk_is_what_brings_the_last_of_them():
    """The bars of Gao et al.'s recipe on planted data: 128 atoms in 64 dimensions, L0 about 5."""
    planted = PlantedAtoms()
    store = ActivationStore.from_tensor(planted.sample(131_072, seed=1))
    tied = planted_run(128, [Reconstruction(), AuxK()], store, untied=False)
    assert recovery(planted.atoms, tied.W_dec) >= 0.85
    without = planted_run(512, [Reconstruction()], store, untied=True)
    with_aux = planted_run(512, [Reconstruction(), AuxK()], store, untied=True)
    assert recovery(planted.atoms, with_aux.W_dec) >= 0.98
    assert recovery(planted.atoms, with_aux.W_dec) >= recovery(planted.atoms, without.W_dec)
    # Half the gap in docs/training.md: one atom more or less is rounding, this is not.
    held_out = planted.sample(20_000, seed=2)
    missed = [fvu(held_out, sae(held_out).detach()) or 0.0 for sae in (with_aux, without)]
    assert 0 < missed[0] < missed[1] - 0.002


def test_training_with_rounded_moments_learns_as_much_and_resumes_exactly(tmp_path):
    exact = train(small_sae(), small_store(), SMALL)
    config = replace(SMALL, moments="bfloat16", micro_batch_size=32)
    straight = train(small_sae(), small_store(), config)
    fvus = [run.metrics[-1]["fvu"] for run in (exact, straight)]
    assert fvus[1] == pytest.approx(fvus[0], rel=0.05)

    def stop(done, *_):
        if done > 3000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_sae(), small_store(), config, tmp_path / "run", progress=stop)
    resumed = train(small_sae(), small_store(), config, tmp_path / "run")
    assert same(weights(resumed.sae), weights(straight.sae))


def test_a_run_records_the_machine_but_may_go_on_with_other_threads(tmp_path):
    train(small_sae(), small_store(), SMALL, tmp_path / "run")
    machine = json.loads((tmp_path / "run/run.json").read_text())["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["kernels"] == backend_name("cpu")
    assert (machine["device"], machine["processes"], machine["split"]) == ("cpu", 1, None)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        train(small_sae(), small_store(), SMALL, tmp_path / "run")
    finally:
        torch.set_num_threads(before)


def test_relu_without_an_objective_is_refused_before_the_loop():
    with pytest.raises(ConfigError, match="has no default objective"):
        train(SAE(16, 48, ReLU()), small_store(), SMALL)


def test_the_clock_counts_only_steps():
    trainer = Trainer(small_sae(), small_store(), SMALL)
    trainer.step()
    before = trainer.seconds
    time.sleep(0.05)
    assert trainer.seconds == before
