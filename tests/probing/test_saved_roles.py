"""Roles survive their file, and an altered file is refused."""

import json
from pathlib import Path

import pytest
import torch

from saelab.errors import CheckpointError
from saelab.probing import Firings, RoleConfig, find_roles, load_roles, save_roles
from saelab.sparse_codes import SparseCodes


def _file(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (40, 12), generator=generator)
    fires = torch.stack([ids == 3, ids > 99, torch.rand(40, 12, generator=generator) < 0.1], dim=-1)
    counts = torch.ones(40, 12, dtype=torch.bool)
    counts[:, 0] = False
    codes = SparseCodes.from_dense(fires[counts].float())
    firings = Firings.of_rows(codes, ids, counts, None)
    found = find_roles(firings, RoleConfig(min_seen=3, min_fires=4), lambda some: -torch.ones(
        len(some), 9))  # fmt: skip
    save_roles(folder / "roles.json", "place", found, found, lambda gram: f"<{gram}>")
    again = load_roles(folder / "roles.json")
    assert again.roles == found
    return folder / "roles.json"


def test_roles_survive_their_file(tmp_path: Path) -> None:
    again = load_roles(_file(tmp_path))
    assert (again.hook, again.texts) == ("place", {0: ("<[3]>",)})
    assert [one.role for one in again.roles.units] == ["token", "dead", "other"]
    assert again.control == again.roles.counts()
    assert [one.unit for one in again.roles.suppressors] == [0]


@pytest.mark.parametrize(
    "harm",
    [
        lambda found: found.update(format="x"),
        lambda found: found["units"].pop(1),
        lambda found: found["units"][0].update(role="king"),
        lambda found: found["units"][0].pop("density"),
        lambda found: found["control"].pop("dead"),
        lambda found: found.update(units=3),
    ],
)
def test_altered_files_are_refused(tmp_path: Path, harm) -> None:
    path = _file(tmp_path)
    found = json.loads(path.read_text())
    harm(found)
    path.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"Run probes\.neuron_roles again"):
        load_roles(path)
