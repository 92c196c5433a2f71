"""Reading and writing in general: what is told apart, what is refused, and that nothing is lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

import saelab
from saelab import SAE, CheckpointError, FormatError, formats
from saelab.activation_functions import (
    ActivationFunction,
    BatchAbsTopK,
    BatchTopK,
    JumpReLU,
    ReLU,
    TopK,
)
from saelab.formats.parts import (
    Parts,
    build,
    gated_to_jumprelu,
    parts_of,
    with_decoder_norms_folded,
    with_input_scale,
    with_pre_bias,
    without_pre_bias,
)
from saelab.kernels.encoding import Selected
from saelab.normalization import Normalization
from tests.contracts import activation_functions
from tests.formats.by_hand import circuit_tracer, gemma_scope, inputs
from tests.formats.cases import GOLDEN, MLP, dictionary


def assert_same_function(got: SAE, expected: SAE) -> None:
    x = inputs()
    for a, b in ((got.encode(x).dense(), expected.encode(x).dense()), (got(x), expected(x))):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


# telling formats apart


@pytest.mark.parametrize(
    ("place", "format"),
    [
        ("saelens/theirs/topk", "saelens"),
        ("saelens/topk", "saelab"),
        ("dictionary_learning/theirs/AutoEncoder", "dictionary_learning"),
        ("dictionary_learning/theirs/AutoEncoder/ae.pt", "dictionary_learning"),
        ("sparsify/theirs/topk/layers.3", "sparsify"),
        ("saelens/elsewhere/qwen3-0.6b-transcoders", "circuit-tracer"),
        ("saelens/elsewhere/qwen3-0.6b-transcoders/layer_0.safetensors", "circuit-tracer"),
    ],
)
def test_the_files_tell_the_format(place: str, format: str) -> None:
    assert formats.detect(GOLDEN / place) == format


def test_other_pickles_are_openais(tmp_path: Path) -> None:
    (tmp_path / "layer_8.pt").touch()
    (tmp_path / "ae_4000.pt").touch()
    assert formats.detect(tmp_path / "layer_8.pt") == "openai"
    assert formats.detect(tmp_path / "ae_4000.pt") == "dictionary_learning"


def test_a_folder_that_could_be_two_things_is_refused_until_one_is_named(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/topk", tmp_path / "both")
    gemma_scope(tmp_path, "both")
    with pytest.raises(FormatError, match=r"saelens or gemma-scope.*--format saelens"):
        formats.read(tmp_path / "both")
    assert formats.read(tmp_path / "both", "saelens").activation.name == "topk"
    assert formats.read(tmp_path / "both", "gemma-scope").activation.name == "jumprelu"


def test_an_unknown_folder_gets_the_list_and_what_is_inside(tmp_path: Path) -> None:
    circuit_tracer(tmp_path / "run" / "layers.3")
    with pytest.raises(FormatError, match=r"openai: a \.pt file.*may be: layers\.3"):
        formats.read(tmp_path / "run")


@pytest.mark.parametrize("format", ["auto", "saelens", "gemma-scope"])
def test_a_path_that_does_not_exist_is_said_so(format: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="There is no file or folder"):
        formats.read(tmp_path / "nothing", format)


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no format 'onnx'. There is circuit-tracer"):
        formats.read(tmp_path, "onnx")
    with pytest.raises(FormatError, match=r"no export format 'onnx'. There is circuit-tracer"):
        formats.export(dictionary("topk"), tmp_path, "onnx")


def test_our_own_dictionaries_are_read_with_their_checksums(tmp_path: Path) -> None:
    dictionary("topk").save(tmp_path)
    assert_same_function(formats.read(tmp_path), dictionary("topk"))
    (tmp_path / "sae_weights.safetensors").write_bytes(b"altered")
    with pytest.raises(CheckpointError, match="SHA-256"):
        formats.read(tmp_path)


# what may be said besides the path


def test_hook_points_can_be_said_and_overrule_the_files() -> None:
    sae = formats.read(GOLDEN / "saelens/theirs/topk", hook="blocks.1.hook_resid_pre")
    assert sae.hook == "blocks.1.hook_resid_pre"


def test_half_precision_is_read_without_a_loss_and_the_type_can_be_chosen(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/topk", tmp_path / "half")
    weights = load_file(tmp_path / "half/sae_weights.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, tmp_path / "half/sae_weights.safetensors")
    sae = formats.read(tmp_path / "half")
    assert sae.dtype == torch.float32
    assert torch.equal(sae.W_dec, halves["W_dec"].float())
    assert formats.read(tmp_path / "half", dtype=torch.float64).dtype == torch.float64


def test_a_type_in_the_configuration_rounds_as_saelens_rounds(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/topk", tmp_path / "a")
    config = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    weights = load_file(tmp_path / "a/sae_weights.safetensors")
    weights["b_dec"] = weights["b_dec"] + 1e-4
    save_file(weights, tmp_path / "a/sae_weights.safetensors")
    sae = formats.read(tmp_path / "a")
    assert torch.equal(sae.b_dec, weights["b_dec"].bfloat16().float())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalize_activations": "constant_norm_rescale"}, "scaled to the same length"),
        ({"normalize_activations": "covariance_whitening"}, "save it for inference"),
        ({"normalize_activations": "zca"}, "'zca' is not known"),
        ({"architecture": "matching_pursuit"}, "its latents come from a search"),
        ({"architecture": "temporal"}, "depend on the tokens before"),
        ({"architecture": "crosscoder"}, "saelab does not know it"),
        ({"hook_head_index": 3}, "attention head 3 alone"),
        ({"finetuning_scaling_factor": True}, "lacks the scaling_factor"),
        ({"new_rule": True}, "does not know: new_rule"),
        ({"activation_fn_str": "tanh-relu"}, "saelab reads relu, and topk"),
        ({"activation_fn_kwargs": {"k": 4, "signed": True}}, "nothing that changes the rule"),
        ({"activation_fn_kwargs": {"k": 4}, "k": 5}, "contradict"),
        ({"d_sae": 17}, "where .*d_sae=17.* was expected"),
        ({"dtype": "float8"}, "dtype='float8'"),
    ],
)
def test_settings_that_saelab_does_not_compute_are_refused(change, reason, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/flat_topk", tmp_path / "a")
    config = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(FormatError, match=reason):
        formats.read(tmp_path / "a")


def test_a_scaling_factor_of_ones_is_dropped_and_any_other_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/flat_topk", tmp_path / "a")
    weights = load_file(tmp_path / "a/sae_weights.safetensors")
    save_file(weights | {"scaling_factor": torch.ones(16)}, tmp_path / "a/sae_weights.safetensors")
    same = formats.read(GOLDEN / "saelens/theirs/flat_topk")
    assert_same_function(formats.read(tmp_path / "a"), same)
    twos = {"scaling_factor": 2 * torch.ones(16)}
    save_file(weights | twos, tmp_path / "a/sae_weights.safetensors")
    with pytest.raises(FormatError, match="found after training"):
        formats.read(tmp_path / "a")


def test_the_scale_of_a_checkpoint_is_read_from_beside_it(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/flat_scaled", tmp_path / "a")
    (tmp_path / "a/activation_scaler.json").write_text('{"scaling_factor": 0.375}')
    said = formats.read(GOLDEN / "saelens/theirs/flat_scaled", input_scale=0.375)
    assert_same_function(formats.read(tmp_path / "a"), said)


def test_recorded_sparsity_is_a_logarithm(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saelens/theirs/flat_topk", tmp_path / "a")
    save_file({"sparsity": torch.full((16,), -1.0)}, tmp_path / "a/sparsity.safetensors")
    recorded = formats.read(tmp_path / "a").metadata["imported"]["recorded"]
    assert recorded["l0"] == pytest.approx(1.6)


def test_without_its_configuration_a_class_is_told_by_its_tensors_or_not_at_all(tmp_path) -> None:
    theirs = GOLDEN / "dictionary_learning/theirs"
    for kind in ("GatedAutoEncoder", "AutoEncoderNew", "BatchTopKSAE"):
        (tmp_path / kind).mkdir()
        shutil.copy(theirs / kind / "ae.pt", tmp_path / kind / "ae.pt")
    for kind in ("GatedAutoEncoder", "AutoEncoderNew"):
        assert_same_function(formats.read(tmp_path / kind), formats.read(theirs / kind))
    with pytest.raises(FormatError, match="AutoEncoderTopK or BatchTopKSAE, which do not compute"):
        formats.read(tmp_path / "BatchTopKSAE")


def test_a_transcoder_of_dictionary_learning_must_be_told_its_places() -> None:
    folder = GOLDEN / "dictionary_learning/ours/transcoder"
    with pytest.raises(FormatError, match=r"Say hook=\.\.\. and hook_out"):
        formats.read(folder)
    sae = formats.read(folder, **MLP)
    assert (sae.hook, sae.hook_out, sae.pre_bias) == (MLP["hook"], MLP["hook_out"], False)


def test_a_sparsify_transcoder_in_a_folder_of_another_name_must_be_told(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "sparsify/theirs/skip/layers.3.mlp", tmp_path / "mine")
    with pytest.raises(FormatError, match="not named after a module"):
        formats.read(tmp_path / "mine")
    assert formats.read(tmp_path / "mine", **MLP).hook_out == MLP["hook_out"]


def test_a_seed_folder_of_sparsify_lies_inside_the_hook_points(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "sparsify/theirs/topk/layers.3", tmp_path / "layers.7/seed1")
    assert formats.read(tmp_path / "layers.7/seed1").hook == "blocks.7.hook_resid_post"


# writing


@pytest.mark.parametrize(("activation", "name"), [(TopK(2), "topk"), (ReLU(), "standard")])
def test_saelens_files_are_those_that_save_writes(activation, name, tmp_path: Path) -> None:
    sae = SAE(4, 8, activation, normalization=Normalization(scale_in=0.5, scale_out=0.5))
    sae.save(tmp_path / "own")
    written = saelab.export(sae, tmp_path / "out")
    assert [path.name for path in written] == ["cfg.json", "sae_weights.safetensors"]
    for path in written:
        assert path.read_bytes() == (tmp_path / "own" / path.name).read_bytes()
    assert f'"architecture": "{name}"' in written[0].read_text()
    assert not (tmp_path / "out" / "saelab.json").exists()


class Squared(ActivationFunction):
    """An activation function that no other library has."""

    name = "squared"

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return pre_acts.relu().square()

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        return ReLU().select(pre_acts)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        return pre_acts.square()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


@pytest.mark.parametrize("format", formats.FORMATS)
def test_what_a_format_cannot_express_is_refused_and_nothing_is_written(format, tmp_path) -> None:
    parts = parts_of(dictionary("relu", **MLP))
    squared = Parts(
        **{name: getattr(parts, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
        activation=Squared(),
        pre_bias=False,
        hook=MLP["hook"],
        hook_out=MLP["hook_out"],
    )
    write = formats.FORMATS[format].write
    assert write is not None
    with pytest.raises(FormatError, match=r"exactly|cannot be expressed|has no|cannot express"):
        write([squared])
    with pytest.raises(FormatError):
        sae = SAE(6, 16, BatchAbsTopK(2.0), hook="blocks.0.hook_resid_post")
        formats.export(sae, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "sparsify", "gemma-scope"])
def test_a_folder_holds_one_dictionary(format: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds one dictionary; 2 were given"):
        formats.export([dictionary("topk"), dictionary("topk")], tmp_path, format)


@pytest.mark.parametrize("activation", activation_functions(), ids=lambda a: a.name)
def test_every_family_goes_out_exactly_or_not_at_all(activation, tmp_path: Path) -> None:
    sae = SAE(5, 12, activation, hook="blocks.0.hook_resid_post")
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-1, 2, 12))
        sae.b_dec.copy_(torch.linspace(-1, 1, 5))
    x, written = 2 * torch.randn(40, 5), []
    for format in formats.FORMATS:
        try:
            formats.export(sae, tmp_path / format, format)
        except FormatError:
            continue
        back = formats.read(tmp_path / format)
        expected = sae.encode(x).dense()
        assert (back.encode(x).dense() - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (back(x) - sae(x)).abs().max() <= 1e-5 * sae(x).abs().max()
        written.append(format)
    assert written or activation.saelens() is None


def test_several_hops_between_libraries_change_nothing(tmp_path: Path) -> None:
    sae = dictionary("jumprelu")
    for hop, format in enumerate(
        ["gemma-scope", "saelens", "dictionary_learning", "gemma-scope-2"]
    ):
        formats.export(sae, tmp_path / str(hop), format)
        sae = formats.read(tmp_path / str(hop), hook="blocks.3.hook_resid_post")
    assert_same_function(sae, dictionary("jumprelu"))


# the algebra


def test_moving_the_pre_bias_into_the_encoder_and_back_changes_nothing() -> None:
    parts = parts_of(dictionary("relu"))
    moved = without_pre_bias(parts)
    assert not moved.pre_bias
    for each in (moved, with_pre_bias(moved)):
        assert_same_function(build(each, "here", {}), dictionary("relu"))


def test_decoder_norms_move_into_the_latents() -> None:
    parts = parts_of(dictionary("jumprelu"))
    norms = parts.W_dec.norm(dim=1)
    parts = Parts(
        W_enc=parts.W_enc,
        b_enc=parts.b_enc,
        W_dec=parts.W_dec,
        b_dec=parts.b_dec,
        activation=TopK(4),
        pre_bias=True,
    )
    folded = with_decoder_norms_folded(parts, "here")
    x = inputs()
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(16))
    z = (x - parts.b_dec) @ parts.W_enc + parts.b_enc
    torch.testing.assert_close(build(folded, "here", {}).pre_activations(x), z * norms)


def test_a_decoder_row_of_zeros_has_no_norm_to_fold() -> None:
    parts = parts_of(dictionary("relu"))
    parts.W_dec[3] = 0
    with pytest.raises(FormatError, match="1 decoder rows are zero"):
        with_decoder_norms_folded(parts, "here")


@pytest.mark.parametrize("scale", [0.5, 3.7])
def test_an_input_scale_is_folded_exactly(scale: float) -> None:
    parts, x = parts_of(dictionary("topk")), inputs()
    plain, scaled = build(parts, "", {}), build(with_input_scale(parts, scale), "", {})
    torch.testing.assert_close(scaled.encode(x).dense(), plain.encode(x * scale).dense())
    torch.testing.assert_close(scaled(x), plain(x * scale) / scale)


def test_a_gated_encoder_is_a_jumprelu() -> None:
    generator = torch.Generator().manual_seed(1)
    w, gate, magnitude, r = (
        torch.randn(shape, generator=generator) for shape in ((6, 16), (16,), (16,), (16,))
    )
    x = inputs()
    u = x @ w
    expected = (u + gate > 0) * (r.exp() * u + magnitude).relu()
    found = gated_to_jumprelu(w, gate, magnitude, r)
    z = x @ found["W_enc"] + found["b_enc"]
    got = z * (z > found["threshold"])
    assert ((got != 0) == (expected != 0)).all()
    torch.testing.assert_close(got, expected)


def test_a_threshold_below_zero_acts_as_zero() -> None:
    parts = parts_of(dictionary("relu"))
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "pre_bias")
    jumps = Parts(
        **{name: getattr(parts, name) for name in names},
        activation=JumpReLU(),
        threshold=torch.full((16,), -0.5),
    )
    assert_same_function(build(jumps, "here", {}), dictionary("relu"))


def test_a_batch_topk_keeps_its_family_through_dictionary_learning(tmp_path: Path) -> None:
    formats.export(dictionary("batchtopk"), tmp_path, "dictionary_learning")
    sae = formats.read(tmp_path)
    assert isinstance(sae.activation, BatchTopK)
    assert (sae.activation.k, float(sae.activation.threshold)) == (4.0, 0.625)
