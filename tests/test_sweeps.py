"""Several dictionaries from one pass: each as if it had been trained alone."""

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import pytest
import torch

from saelab.activation_functions import BatchTopK, TopK
from saelab.errors import ConfigError, Interrupted
from saelab.objectives import AuxK, Reconstruction
from saelab.planted import PlantedAtoms
from saelab.recipes import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.sweeps import Member, sweep
from saelab.training import train
from saelab.training.config import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*latents")
CONFIG = TrainConfig(
    tokens=64 * 20,
    batch_size=64,
    lr=3e-3,
    log_every_tokens=320,
    checkpoint_every_tokens=320,
    dead_after_tokens=256,
)


@final
@dataclass(frozen=True, kw_only=True)
class SmallRecipe(Recipe):
    """A TopK dictionary of the size of a test."""

    d_sae: int = 48
    """Latents."""
    tokens: int = 64 * 10
    """Training budget in tokens."""
    batch_size: int = 64
    """Tokens per step."""
    k: int = 2
    """Latents per token."""

    def activation(self) -> TopK:
        return TopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        return Reconstruction(), AuxK()


def store() -> ActivationStore:
    planted = PlantedAtoms(d=16, n_atoms=24, l0=2.0, exact=True)
    x, y = planted.sample(2000, seed=1), planted.sample(2000, seed=2)
    return ActivationStore.from_tensor({"early": x, "late": y}, hook="early")


def members() -> list[Member]:
    return [
        Member(name="k2", sae=SAE(16, 48, TopK(2), hook="early"), config=CONFIG),
        Member(name="wide", sae=SAE(16, 96, TopK(2), hook="early", seed=3), config=CONFIG),
        Member(name="late", sae=SAE(16, 48, BatchTopK(2.0), hook="late"), config=CONFIG),
        Member(
            name="short",
            sae=SAE(16, 48, TopK(4), hook="early"),
            config=replace(CONFIG, tokens=64 * 7),
        ),
        Member(
            name="other_order",
            sae=SAE(16, 48, TopK(2), hook="early"),
            config=replace(CONFIG, seed=5),
        ),
    ]


def files(folder: Path) -> dict[str, bytes]:
    ignored = {".lock", "timing.jsonl", "recipe.json"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ignored
    }


def test_every_member_leaves_the_files_of_a_run_that_was_trained_alone(tmp_path: Path) -> None:
    result = sweep(members(), store(), tmp_path / "sweep")
    assert list(result.failed) == []
    assert set(result.results) == {"k2", "wide", "late", "short", "other_order"}
    for member in members():
        hook = member.sae.hook or "early"
        train(member.sae, store().at(hook), member.config, tmp_path / "alone" / member.name)
        alone = files(tmp_path / "alone" / member.name)
        assert alone == files(tmp_path / "sweep" / member.name), member.name
        assert "sae/sae_weights.safetensors" in alone


def test_members_that_share_an_order_are_served_from_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    batches = ActivationStore.batches

    def counted(self, batch_size, **settings):
        passes.append((settings["seed"], tuple(settings["hooks"])))
        return batches(self, batch_size, **settings)

    monkeypatch.setattr(ActivationStore, "batches", counted)
    sweep(members(), store(), tmp_path)
    # Seed 0: once for all four, once more when the short one is finished. Seed 5: once.
    assert passes == [(0, ("early", "late")), (0, ("early", "late")), (5, ("early",))]


def test_an_interrupted_sweep_goes_on_even_from_different_cursors(tmp_path: Path) -> None:
    straight = sweep(members(), store(), tmp_path / "straight")
    stopped = tmp_path / "stopped"

    def stop_at(limit: int):
        def progress(done: int, *_: object) -> None:
            if done >= limit:
                os.kill(os.getpid(), signal.SIGTERM)

        return progress

    with pytest.raises(Interrupted, match=r"of all members.*run the same command again"):
        sweep(members(), store(), stopped, progress=stop_at(1000))
    # One member goes ahead by itself, to the end.
    wide = members()[1]
    train(wide.sae, store(), wide.config, stopped / "wide")
    with pytest.raises(Interrupted):
        sweep(members(), store(), stopped, progress=stop_at(1500))
    again = sweep(members(), store(), stopped)
    for name, result in straight.results.items():
        assert result.metrics == again.results[name].metrics
        weights = result.sae.state_dict()
        for key, value in again.results[name].sae.state_dict().items():
            assert torch.equal(value, weights[key]), (name, key)


def test_a_member_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    asked = members()
    with torch.no_grad():
        asked[1].sae.b_dec.fill_(float("nan"))
    result = sweep(asked, store(), tmp_path)
    assert set(result.results) == {"k2", "late", "short", "other_order"}
    assert "loss became nan at step 1" in result.failed["wide"]
    assert json.loads((tmp_path / "sweep.json").read_text())["failed"] == result.failed
    expected = train(members()[0].sae, store(), CONFIG).metrics
    assert result.results["k2"].metrics == expected


def test_recipes_are_named_after_what_differs_and_share_the_order_of_the_data(
    tmp_path: Path,
) -> None:
    recipes = [SmallRecipe(k=k, seed=seed, hook="late") for k in (2, 4) for seed in (0, 1)]
    seen: list[tuple[int, int, str]] = []
    result = sweep(recipes, store(), tmp_path, progress=lambda *row: seen.append(row))
    names = [name.partition("-")[2] for name in result.results]
    assert names == ["seed=0-k=2", "seed=1-k=2", "seed=0-k=4", "seed=1-k=4"]
    assert {one.sae.metadata["training"]["config"]["seed"] for one in result.results.values()} == {
        0
    }
    first, second = list(result.results.values())[:2]
    assert not torch.equal(first.sae.W_dec, second.sae.W_dec)
    assert seen[-1][:2] == (4 * 640, 4 * 640) and seen[-1][2].startswith("4 members, fvu 0.")
    sheet = json.loads((tmp_path / "sweep.json").read_text())
    assert [one["settings"]["k"] for one in sheet["members"].values()] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "no dictionaries has nothing to do"),
        ([SmallRecipe(), SmallRecipe()], "two members named"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(asked, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(asked, store(), tmp_path)


def test_a_name_that_would_leave_the_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot have a folder of that name"):
        Member(name="../k2", sae=SAE(16, 48, TopK(2)), config=CONFIG)
