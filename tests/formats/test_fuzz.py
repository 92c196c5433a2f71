"""2,000 damaged or contradictory files: each is refused in one sentence, or computes the same."""

import collections
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelab import SAE, CheckpointError, FormatError, formats
from tests.formats import by_hand
from tests.formats.cases import GOLDEN
from tests.formats.damage import Files, damaged

N_FILES, PARTS = 2000, 4
PLACES: dict[str, dict[str, Any]] = {
    **{
        f"saelens/theirs/{case}": {}
        for case in (
            *("standard", "topk_rescaled", "abstopk", "jumprelu", "gated", "skip_transcoder"),
            *("jumprelu_transcoder", "checkpoint_batchtopk", "flat_topk", "flat_gated"),
        )
    },
    **{
        f"dictionary_learning/theirs/{case}": {}
        for case in (
            *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"),
            *("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
        )
    },
    **{
        f"sparsify/theirs/{case}": {}
        for case in ("topk/layers.3", "groupmax/layers.3", "skip/layers.3.mlp")
    },
    "saelens/elsewhere/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_76": {},
    "saelens/elsewhere/gemma-scope-2-270m-pt/transcoder/layer_15_width_16k_l0_big_affine": {},
    "saelens/elsewhere/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big": {},
}
IGNORED = {"expected.safetensors", "wandb-config.yaml"}


def pristine(tmp_path: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Golden folders, and hand-made ones for the formats that have none."""
    found = {place: (GOLDEN / place, asked) for place, asked in PLACES.items()}
    by_hand.circuit_tracer(tmp_path / "set", 2, kind="topk", skip=True)
    by_hand.circuit_tracer(tmp_path / "jumps", 1, kind="jumprelu")
    by_hand.openai(tmp_path / "openai" / "autoencoder.pt")
    found |= {
        "set": (tmp_path / "set", {"layer": 1}),
        "jumps": (tmp_path / "jumps", {}),
        "openai": (tmp_path / "openai", {}),
    }
    return found


def contents(folder: Path) -> Files:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: path.read_bytes() for path in files if path.name not in IGNORED}


def answer(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    return sae.encode(x).dense().double(), sae(x).double()


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max())
        for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_file_is_refused_or_computes_the_same(part: int, tmp_path: Path) -> None:
    random_ = random.Random(part)
    x = by_hand.inputs()
    sources = pristine(tmp_path / "pristine")
    expected = {n: answer(formats.read(path, **asked), x) for n, (path, asked) in sources.items()}
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(N_FILES // PARTS):
        name = random_.choice(sorted(sources))
        path, asked = sources[name]
        change, files = damaged(contents(path), random_)
        folder = tmp_path / str(number) / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        what = f"{change} of {name} (number {number})"
        try:
            sae = formats.read(folder, **asked)
        except (FormatError, CheckpointError) as error:
            assert len(str(error)) > 30, what
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{what} raised {error!r}") from error
        else:
            assert same(answer(sae, x), expected[name]), what
            outcomes["same"] += 1
    assert outcomes["refused"] > 250
    assert outcomes["same"] > 20


def test_the_damage_is_drawn_the_same_way_each_time() -> None:
    files = contents(GOLDEN / "saelens" / "theirs" / "gated")
    first, second = (
        [damaged(files, generator) for _ in range(50)]
        for generator in (random.Random(3), random.Random(3))
    )
    assert first == second
    assert len({change for change, _ in first}) > 8


def test_a_pickle_with_code_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.formats.damage import Command

    torch.save({"W_enc": Command()}, tmp_path / "ae.pt")
    with pytest.raises(FormatError, match=r"ae\.pt is not a complete torch\.save file"):
        formats.read(tmp_path)
    assert "this was run" not in capsys.readouterr().out
