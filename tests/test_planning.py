"""What a plan says is what a run then uses."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from saelab import HarvestConfig, TrainConfig, load_model, planning, tokens
from saelab.planning import disk_of_run

COMMON = """
import json, sys
import torch
import saelab
from saelab import planning
from saelab.activation_functions import TopK

torch.set_num_threads(1)
folder = sys.argv[1]
harvesting = saelab.HarvestConfig(dtype="float32", outlier_factor=None)
training = saelab.TrainConfig(tokens=2048, batch_size=512, center="mean")
hook = "blocks.0.hook_resid_pre"
"""
# The embedding is wide and the blocks after it are never run, so that harvesting is quick and what
# it holds in memory is mostly activations.
MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=1024, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=8, max_position_embeddings=128)
model = saelab.load_model(LlamaForCausalLM(config).eval(), bos_token_id=0, device="cpu")
ids = torch.randint(1, 64, (40, 1000), generator=torch.Generator().manual_seed(0)).tolist()
text = saelab.tokens.from_text(model, ids, length=100)
"""
PLAN = """
made = planning.plan(model, text, [hook], d_sae=6144, k=32, harvesting=harvesting,
                     training=training, measure=False)
print(json.dumps({"memory": dict(made.memory), "disk": dict(made.disk)}))
"""
HARVEST = """
saelab.harvest(model, text, [hook], folder + "/acts", config=harvesting)
print(json.dumps(planning._peak()))
"""
TRAIN = """
store = saelab.ActivationStore.open(folder + "/acts")
sae = saelab.SAE(store.d_in, 6144, TopK(32), hook=store.hook)
saelab.train(sae, store, training, folder + "/run")
print(json.dumps(planning._peak()))
"""


def in_a_process(folder: Path, *parts: str):
    """Run a program in a process of its own, and read what it prints."""
    program = textwrap.dedent("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow  # three processes that each hold a gigabyte
def test_a_plan_is_within_a_quarter_of_the_memory_and_disk_that_a_run_used(tmp_path):
    planned = in_a_process(tmp_path, COMMON, MODEL, PLAN)
    used_by_harvest = in_a_process(tmp_path, COMMON, MODEL, HARVEST)
    used_by_training = in_a_process(tmp_path, COMMON, TRAIN)

    assert planned["memory"]["harvest"] == pytest.approx(used_by_harvest, rel=0.25)
    assert planned["memory"]["train"] == pytest.approx(used_by_training, rel=0.25)
    disk = planned["disk"]
    assert disk["activations"] == pytest.approx(bytes_below(tmp_path / "acts"), rel=0.25)
    run = disk["checkpoint"] + disk["dictionary"]
    assert run == pytest.approx(bytes_below(tmp_path / "run"), rel=0.25)


def test_the_disk_of_a_run_is_counted_exactly():
    # W_enc and W_dec: 2 * 4 * 8 numbers, b_enc: 8, b_dec: 4; four bytes each
    weights = 4 * (2 * 4 * 8 + 8 + 4)
    # the weights and two moments, and an int64 a latent for when it last fired
    assert disk_of_run(4, 8) == {"dictionary": weights, "checkpoint": 3 * weights + 8 * 8}


def test_time_grows_with_the_budget_and_lines_can_be_read(tiny_model_folder, tiny_text_file):
    model = load_model(tiny_model_folder)
    text = tokens.from_text(model, tiny_text_file, length=32, max_tokens=6400)
    hook = ["blocks.0.hook_resid_post"]
    config = HarvestConfig(rows_per_batch=4)
    short, long = (
        planning.plan(
            model, text, hook, d_sae=32, k=2, harvesting=config, training=TrainConfig(tokens=budget)
        )
        for budget in (8192, 8192 * 1000)
    )
    assert 0 < short.seconds["harvest"] < 60
    assert long.seconds["train"] > 100 * short.seconds["train"]
    assert [line.split()[0] for line in short.lines()] == ["Disk:", "Memory", "Time:"]


def test_a_plan_without_measuring_has_no_times(tiny_model_folder, tiny_text_file):
    model = load_model(tiny_model_folder)
    text = tokens.from_text(model, tiny_text_file, length=32, max_tokens=640)
    made = planning.plan(model, text, ["blocks.0.hook_resid_post"], d_sae=32, measure=False)
    assert made.seconds == {}
    assert len(made.lines()) == 2


def test_free_disk_of_a_folder_that_is_not_there_is_that_of_its_parent(tmp_path):
    assert planning.free_disk(tmp_path / "a" / "b") == pytest.approx(
        planning.free_disk(tmp_path), rel=0.01
    )


def test_memory_of_training_grows_with_the_dictionary_by_its_copies():
    def memory(d_sae: int) -> int:
        return planning.memory_of_training(
            64, d_sae, 8, 100, HarvestConfig(), TrainConfig(tokens=1024, batch_size=64)
        )

    weights = 4 * 2 * 64 * 1_000_000
    # weights, gradients and two moments; at a checkpoint three of these as bytes, three times
    # over, and W_enc once more
    assert memory(1_100_000) - memory(100_000) == pytest.approx((4 + 9 + 0.5) * weights, rel=0.05)


def test_durations_are_written_for_people():
    assert [planning._duration(s) for s in (7.4, 75.0, 7260.0)] == [
        "7 s",
        "1 min 15 s",
        "2 h 1 min",
    ]
