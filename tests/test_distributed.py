"""Several processes train the same dictionary as one: with tokens divided, and with latents."""

import json
from pathlib import Path

import pytest
import torch

from saelab.distributed import ALONE, Ranks, ranks
from saelab.errors import ConfigError
from saelab.files import read_tensors
from saelab.sae import SAE
from saelab.training import train
from saelab.training.checkpoints import latest_checkpoint
from saelab.training.run_logs import read_jsonl
from tests.rank_cases import (
    CONFIG,
    FAMILIES,
    say_what_is_refused,
    selected,
    store,
    together,
    train_and_write,
    train_in_folder,
    trainer,
)

DIVIDED = [(family, "tokens") for family in FAMILIES] + [
    (family, "latents") for family in ("topk", "abstopk", "batchtopk", "batchabstopk")
]
pytestmark = pytest.mark.filterwarnings("ignore:.*latents")


@pytest.mark.parametrize(("family", "split"), DIVIDED)
def test_two_processes_select_the_same_and_learn_the_same_as_one(
    family: str, split: str, tmp_path: Path
) -> None:
    together(train_and_write, family, split, tmp_path)
    parts = [read_tensors(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    alone = trainer(family, ALONE)
    expected = selected(alone)
    if any(term.name == "auxk" for term in alone.terms):
        assert alone._firing.dead(CONFIG.dead_after).any(), "AuxK has nothing to do in this test"
    for i, kept in enumerate(expected):
        found = torch.cat([part[f"kept.{i}"] for part in parts], dim=int(split == "latents"))
        assert torch.equal(found, kept), f"step {i + 1}"
    tensors = alone._state.tensors()
    assert {f"sae.{name}" for name in tensors} <= set(parts[0])
    for name, value in tensors.items():
        for part in parts:
            gap = (part[f"sae.{name}"].double() - value.double()).norm()
            assert gap <= 1e-6 * value.double().norm(), name
        assert torch.equal(parts[0][f"sae.{name}"], parts[1][f"sae.{name}"]), name


@pytest.mark.parametrize("split", ["tokens", "latents"])
def test_a_run_of_two_processes_goes_on_and_one_process_can_finish_it(
    split: str, tmp_path: Path
) -> None:
    together(train_in_folder, "batchtopk", split, tmp_path / "straight", None)
    for stop in (13, 14):
        together(train_in_folder, "batchtopk", split, tmp_path / "stopped", stop)
    other = tmp_path / "other"
    together(train_in_folder, "batchtopk", split, other, 25)
    together(train_in_folder, "batchtopk", split, tmp_path / "stopped", None)
    straight, stopped = (
        (tmp_path / name / "sae/sae_weights.safetensors").read_bytes()
        for name in ("straight", "stopped")
    )
    assert straight == stopped
    assert latest_checkpoint(other / "checkpoints") == other / "checkpoints" / "00000020"
    activation, terms = FAMILIES["batchtopk"]
    finished = SAE(16, 48, activation(), dtype=torch.float64)
    train(finished, store(), CONFIG, other, terms=terms)
    whole = SAE.load(tmp_path / "straight" / "sae")
    torch.testing.assert_close(finished.W_enc, whole.W_enc, rtol=1e-6, atol=1e-9)
    rows = read_jsonl(tmp_path / "stopped" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30]
    machine = json.loads((tmp_path / "straight" / "run.json").read_text())["machine"]
    assert (machine["processes"], machine["split"]) == (2, split)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("uneven", "63 tokens of a batch cannot be divided among 2 processes"),
        ("term", "The run has matryoshka, which needs all latents in one process"),
        ("family", r"The latents of JumpReLU.* cannot be divided among processes; those of"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_every_process(
    case: str, message: str, tmp_path: Path
) -> None:
    together(say_what_is_refused, case, tmp_path)
    for rank in (0, 1):
        with pytest.raises(ConfigError, match=message):
            raise ConfigError((tmp_path / f"{rank}.txt").read_text())


def test_alone_nothing_is_exchanged() -> None:
    with ranks("tokens") as one:
        assert (one.rank, one.world, one.divides_tokens, one.divides_latents) == (
            0,
            1,
            False,
            False,
        )
        x = torch.arange(3.0)
        assert one.mean(x) is x and one.add(x) is x and one.gather(x) == [x]


def test_shares_follow_the_order_of_the_ranks_and_must_be_even() -> None:
    assert Ranks("tokens", 1, 3).share(12, "latents") == slice(4, 8)
    with pytest.raises(ConfigError, match=r"13 latents cannot .*multiple of 3, such as 12"):
        Ranks("tokens", 1, 3).share(13, "latents")
