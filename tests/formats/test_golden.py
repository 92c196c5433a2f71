"""What other libraries wrote computes here what it computed there, and the other way round.

The golden folders hold files and answers that SAELens 6.54.12, dictionary_learning 0.1.0 and
sparsify 1.3.3 wrote themselves (`make golden`).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelab import SAE, FormatError, formats
from saelab.files import read_tensors
from saelab.formats.foreign import pickle_of
from tests.formats.by_hand import ELSEWHERE
from tests.formats.cases import GOLDEN, OURS, dictionary

REFUSED = {"layer_norm", "never_trained"}


def folders(pattern: str) -> list[Path]:
    return sorted(path.parent for path in GOLDEN.glob(f"{pattern}/expected.safetensors"))


def name(folder: Path) -> str:
    return folder.relative_to(GOLDEN).as_posix()


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest number, which is what float32 sums in another order allow."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_computes(sae: SAE, expected: dict[str, Tensor]) -> None:
    latents = sae.encode(expected["x"]).dense()
    assert ((latents != 0) == (expected["latents"] != 0)).all()
    assert 24 < (latents != 0).sum() < latents.numel()
    assert_same(latents, expected["latents"])
    assert_same(sae(expected["x"]), expected["recons"])


THEIRS = [*folders("*/theirs/*"), *folders("*/theirs/*/*")]


@pytest.mark.parametrize("folder", [f for f in THEIRS if f.name not in REFUSED], ids=name)
def test_what_a_peer_wrote_computes_what_the_peer_computed(folder: Path) -> None:
    settings: dict[str, Any] = {"input_scale": 0.375} if folder.name == "flat_scaled" else {}
    sae = formats.read(folder, **settings)
    assert_computes(sae, read_tensors(folder / "expected.safetensors"))
    assert sae.metadata["imported"]["format"] == folder.relative_to(GOLDEN).parts[0]


def test_the_golden_files_cover_every_class_and_architecture_of_each_peer() -> None:
    found = {name(folder) for folder in THEIRS}
    classes = ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"]
    classes += ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"]
    assert {f"dictionary_learning/theirs/{kind}" for kind in classes} <= found
    kinds = ["standard", "topk", "abstopk", "jumprelu", "gated", "transcoder", "skip_transcoder"]
    kinds += ["jumprelu_transcoder", "jumprelu_skip_transcoder"]
    kinds += ["checkpoint_batchtopk", "checkpoint_matryoshka", "flat_topk", "flat_gated"]
    assert {f"saelens/theirs/{kind}" for kind in kinds} <= found
    assert {f"sparsify/theirs/{kind}" for kind in ("groupmax/layers.3", "skip/layers.3.mlp")} <= (
        found
    )


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("saelens/theirs/layer_norm", "each token is scaled by its own standard deviation"),
        ("dictionary_learning/theirs/never_trained", r"threshold .* is -1\.0: it was never set"),
        ("saelens/theirs/flat_scaled", "multiplies the activations by a factor that the files do"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused_with_the_reason(folder, reason) -> None:
    with pytest.raises(FormatError, match=reason):
        formats.read(GOLDEN / folder)


@pytest.mark.parametrize(
    ("folder", "hook", "hook_out", "model"),
    [
        ("saelens/theirs/topk", "blocks.3.hook_resid_post", None, "gpt2-small"),
        ("saelens/theirs/flat_gated", "blocks.3.hook_resid_post", None, "gpt2-small"),
        (
            "saelens/theirs/skip_transcoder",
            "blocks.3.ln2.hook_normalized",
            "blocks.3.hook_mlp_out",
            "gpt2-small",
        ),
        (
            "dictionary_learning/theirs/AutoEncoder",
            "blocks.3.hook_resid_post",
            None,
            "EleutherAI/pythia-70m-deduped",
        ),
        (
            "sparsify/theirs/topk/layers.3",
            "blocks.3.hook_resid_post",
            None,
            "HuggingFaceTB/SmolLM2-135M",
        ),
        ("sparsify/theirs/expansion/layers.0.mlp", "layers.0.mlp.output", None, None),
        (
            "sparsify/theirs/skip/layers.3.mlp",
            "layers.3.mlp.input",
            "layers.3.mlp.output",
            "HuggingFaceTB/SmolLM2-135M",
        ),
    ],
)
def test_hook_points_and_models_are_what_the_files_say(folder, hook, hook_out, model) -> None:
    sae = formats.read(GOLDEN / folder)
    assert (sae.hook, sae.hook_out) == (hook, hook_out)
    assert model is None or sae.metadata["model"]["name"] == model


def test_what_the_files_record_is_kept() -> None:
    sae = formats.read(GOLDEN / "saelens" / "theirs" / "topk")
    assert sae.metadata["imported"]["recorded"] == {"l0": 4.0}
    matryoshka = formats.read(GOLDEN / "dictionary_learning" / "theirs" / "MatryoshkaBatchTopKSAE")
    assert matryoshka.metadata["imported"]["notes"]["matryoshka_widths"] == [3, 8, 16]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_saelens_reads_files_of_gemma_scope_and_circuit_tracer_as_we_do(place: str) -> None:
    folder = GOLDEN / "saelens" / "elsewhere" / place
    assert_computes(formats.read(folder), read_tensors(folder / "expected.safetensors"))


EXPORTS = [(peer, case) for peer, cases in OURS.items() for case in cases]


@pytest.mark.parametrize(("peer", "case"), EXPORTS)
def test_what_we_exported_the_peer_opened_and_computed_the_same(peer, case) -> None:
    kind, settings = OURS[peer][case]
    expected = read_tensors(GOLDEN / peer / "ours" / case / "expected.safetensors")
    assert_computes(dictionary(kind, **settings), expected)


@pytest.mark.parametrize(("peer", "case"), EXPORTS)
def test_we_still_write_the_files_that_the_peer_opened(peer, case, tmp_path) -> None:
    kind, settings = OURS[peer][case]
    written = formats.export(dictionary(kind, **settings), tmp_path, peer)
    for path in written:
        golden = GOLDEN / peer / "ours" / case / path.name
        if path.suffix == ".pt":  # torch may pack the same tensors differently
            old, new = pickle_of(golden), pickle_of(path)
            assert list(old) == list(new)
            assert all(torch.equal(old[key], new[key]) for key in old)
        elif path.suffix == ".json":
            assert json.loads(path.read_text()) == json.loads(golden.read_text())
        else:
            assert path.read_bytes() == golden.read_bytes()


@pytest.mark.parametrize(("peer", "case"), EXPORTS)
def test_our_own_exports_read_back_as_the_same_function(peer, case) -> None:
    kind, settings = OURS[peer][case]
    sae = dictionary(kind, **settings)
    places: dict[str, Any] = (
        {"hook": sae.hook, "hook_out": sae.hook_out} if sae.is_transcoder else {}
    )
    back = formats.read(GOLDEN / peer / "ours" / case, **places)
    x = read_tensors(GOLDEN / peer / "ours" / case / "expected.safetensors")["x"]
    assert_same(back.encode(x).dense(), sae.encode(x).dense())
    assert_same(back(x), sae(x))
