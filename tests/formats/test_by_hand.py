"""Layouts of projects that are not installed: written by hand, and computed by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelab import SAE, CrossLayerTranscoder, FormatError, Normalization, formats
from saelab.cli import main
from tests.formats import by_hand
from tests.formats.cases import MLP, dictionary


def assert_computes(sae: SAE, x: Tensor, answer: by_hand.Answer) -> None:
    latents, recons = answer
    assert (latents != 0).any()
    for got, expected in ((sae.encode(x).dense(), latents), (sae(x), recons)):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


# circuit-tracer


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_circuit_tracer_layer_computes_what_its_class_does(kind, skip, transposed, tmp_path):
    layers = by_hand.circuit_tracer(tmp_path, kind=kind, skip=skip, transposed=transposed)
    sae = formats.read(tmp_path, layer=1)
    x = by_hand.inputs()
    assert_computes(sae, x, by_hand.per_layer(layers[1], x, kind, skip=skip))
    assert (sae.hook, sae.hook_out) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    assert sae.metadata["model"]["name"] == "Qwen/Qwen3-0.6B"


def test_a_set_is_read_whole_or_by_layer_and_never_by_chance(tmp_path):
    by_hand.circuit_tracer(tmp_path, 3)
    assert list(formats.read_set(tmp_path)) == [0, 1, 2]
    assert formats.read(tmp_path / "layer_2.safetensors").hook == "blocks.2.mlp.hook_in"
    with pytest.raises(FormatError, match=r"layers \[0, 1, 2\], and no layer was named.*layer="):
        formats.read(tmp_path)
    with pytest.raises(FormatError, match="layer 7 is not there"):
        formats.read(tmp_path, layer=7)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("activation: topk", "do not fit together"),
        ("k: 4", "do not fit together"),
        ("activation: softmax", "do not fit together"),
        ("rescale: true", "does not know: rescale"),
        ("k: 4\nk: 5", "'k' is given twice"),
    ],
)
def test_a_contradictory_configuration_of_a_set_is_refused(extra, reason, tmp_path):
    by_hand.circuit_tracer(tmp_path, 1, extra=extra)
    with pytest.raises(FormatError, match=reason):
        formats.read(tmp_path)


def test_an_unknown_key_that_was_checked_can_be_ignored(tmp_path):
    by_hand.circuit_tracer(tmp_path, 1, extra="uploaded_by: somebody")
    assert formats.read(tmp_path, ignore=["uploaded_by"]).d_sae == by_hand.D_SAE


def test_a_set_that_only_points_elsewhere_says_where(tmp_path):
    by_hand.circuit_tracer(tmp_path, 0, extra="transcoders: [hf://google/gemma-scope/a.npz]")
    with pytest.raises(FormatError, match=r"hf://google/gemma-scope/a\.npz"):
        formats.read(tmp_path)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "batchtopk"])
def test_an_exported_set_has_circuit_tracers_layout_and_reads_back(kind, tmp_path):
    saes = []
    for layer in range(2):
        places = {n: hook.replace("3", str(layer)) for n, hook in MLP.items()}
        saes.append(dictionary(kind, **places, skip=True))
    written = formats.export(saes, tmp_path, "circuit-tracer")
    assert [path.name for path in written] == [
        "config.yaml",
        "layer_0.safetensors",
        "layer_1.safetensors",
    ]
    tensors = load_file(tmp_path / "layer_1.safetensors")
    assert tensors["W_enc"].shape == tensors["W_dec"].shape == (16, 6)
    torch.testing.assert_close(tensors["W_skip"].T, saes[1].folded().W_skip.detach())
    assert ("activation_function.threshold" in tensors) == (kind in ("jumprelu", "batchtopk"))
    x = by_hand.inputs()
    for layer, back in formats.read_set(tmp_path).items():
        assert_computes(back, x, (saes[layer].encode(x).dense(), saes[layer](x)))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([("topk", {})], "replaces MLPs, so each must be a transcoder"),
        ([("topk", MLP)], "every layer from 0 on, not for \\[3\\]"),
        ([("groupmax", MLP)], "ReLU, JumpReLU and TopK, not GroupMax"),
        ([("relu", {**MLP, "d_out": 5})], "vectors of one width"),
    ],
)
def test_what_circuit_tracer_cannot_hold_is_refused(settings, reason, tmp_path):
    saes = [dictionary(kind, **each) for kind, each in settings]
    with pytest.raises(FormatError, match=reason):
        formats.export(saes, tmp_path / "out", "circuit-tracer")
    assert not (tmp_path / "out").exists()


def test_layers_of_different_kinds_are_no_set(tmp_path):
    first = {n: hook.replace("3", "0") for n, hook in MLP.items()}
    second = {n: hook.replace("3", "1") for n, hook in MLP.items()}
    saes = [dictionary("topk", **first), dictionary("relu", **second, skip=True)]
    with pytest.raises(FormatError, match="skip connection must be in all or in none; one TopK"):
        formats.export(saes, tmp_path, "circuit-tracer")


# cross-layer


@pytest.mark.parametrize("jumps", [False, True])
def test_cross_layer_weights_compute_the_sum_over_earlier_layers(jumps, tmp_path):
    layers = by_hand.cross_layer(tmp_path, 3, jumps=jumps)
    weights = formats.read_cross_layer(tmp_path)
    x = [by_hand.inputs(seed) for seed in range(3)]
    latents = []
    for w, inputs in zip(layers, x, strict=True):
        z = inputs @ w["W_enc"] + w["b_enc"]
        latents.append(z.relu() * (z > w["threshold"]) if jumps else z.relu())
    for target, got in enumerate(weights.forward(x)):
        expected = layers[target]["b_dec"].expand(24, 6).clone()
        for source in range(target + 1):
            expected += latents[source] @ layers[source]["targets"][:, target - source]
        if jumps:
            expected += x[target] @ layers[target]["W_skip"]
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert weights.hooks[2] == "blocks.2.hook_resid_mid"
    assert weights.hooks_out[2] == "blocks.2.hook_mlp_out"


def joint(**settings: Any) -> CrossLayerTranscoder:
    hooks, hooks_out = (
        [f"blocks.{layer}.{end}" for layer in range(3)] for end in ("mlp.hook_in", "hook_mlp_out")
    )
    scales = [Normalization(scale_in=2.0**i, scale_out=0.5**i) for i in range(3)]
    asked: dict[str, Any] = {"d_in": 6, "d_sae": 16, "k": 4, "selection": "joint", **settings}
    clt = CrossLayerTranscoder(hooks, hooks_out, **asked, normalizations=scales)
    with torch.no_grad():
        for bias in (*clt.b_enc, *clt.b_dec):
            bias.normal_()
        clt.threshold.fill_(0.7300000001)
    return clt


def test_our_cross_layer_transcoder_goes_out_as_what_it_computes_layer_by_layer(tmp_path):
    clt = joint(metadata={"model": {"name": "some-model"}})
    x = [by_hand.inputs(seed) / (layer + 1) for layer, seed in enumerate((5, 6, 7))]
    codes = [clt.encode_layer(layer, inputs) for layer, inputs in enumerate(x)]
    files = formats.write_cross_layer(clt, tmp_path)
    assert len(files) == 7
    weights = formats.read_cross_layer(tmp_path)
    assert (weights.model, tuple(weights.hooks)) == ("some-model", clt.hooks)
    assert 0 < sum(int((code.dense() != 0).sum()) for code in codes) < 3 * 24 * 16
    for got, expected in zip(weights.encode(x), codes, strict=True):
        assert ((got != 0) == (expected.dense() != 0)).all()
        assert (got - expected.dense()).abs().max() <= 1e-5 * expected.dense().abs().max()
    for got, expected in zip(weights.forward(x), clt.decode(codes), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_latent_at_a_threshold_that_float32_cannot_hold_is_active_here_and_there(tmp_path):
    clt, smallest = joint(), torch.tensor(0.73)
    above = torch.nextafter(smallest, torch.tensor(1.0))
    clt.threshold.fill_(float(above) - 1e-12)  # rounds to `above`, which must stay active
    formats.write_cross_layer(clt, tmp_path)
    threshold = formats.read_cross_layer(tmp_path).threshold
    assert threshold is not None and (threshold[1] == smallest).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"selection": "layer"}, "each of its layers keeps k latents"),
        ({"d_out": 5}, "vectors of one width"),
    ],
)
def test_a_cross_layer_transcoder_that_circuit_tracer_cannot_express_is_refused(
    settings, reason, tmp_path
):
    with pytest.raises(FormatError, match=reason):
        formats.write_cross_layer(joint(**settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_export_verb_knows_a_cross_layer_transcoder_when_it_sees_one(tmp_path, capsys):
    joint().save(tmp_path / "run" / "clt")
    words = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main([*words, "--format", "circuit-tracer"]) == 0
    assert "W_dec_2.safetensors" in capsys.readouterr().out
    assert len(formats.read_cross_layer(tmp_path / "out").W_enc) == 3
    assert main(words) == 2
    assert "only circuit-tracer" in capsys.readouterr().err


def test_a_cross_layer_folder_is_no_single_dictionary(tmp_path):
    by_hand.cross_layer(tmp_path)
    with pytest.raises(FormatError, match="read_cross_layer"):
        formats.read(tmp_path, layer=0)


def test_a_cross_layer_transcoder_with_a_layer_missing_is_refused(tmp_path):
    by_hand.cross_layer(tmp_path)
    (tmp_path / "W_enc_1.safetensors").unlink()
    with pytest.raises(FormatError, match=r"W_enc files of layers \[0, 2\]"):
        formats.read_cross_layer(tmp_path)


# Gemma Scope


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(
    ("place", "hook", "hook_out"),
    [
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/x", "blocks.20.hook_resid_post", None),
        ("google/gemma-scope-9b-it-mlp/layer_5/width_16k/x", "blocks.5.hook_mlp_out", None),
        ("google/gemma-scope-2b-pt-att/layer_7/width_16k/x", "blocks.7.attn.hook_z", None),
        (
            "google/gemma-scope-2b-pt-transcoders/layer_3/width_16k/x",
            "blocks.3.ln2.hook_normalized",
            "blocks.3.hook_mlp_out",
        ),
    ],
)
def test_gemma_scope_is_a_jumprelu_placed_by_its_folders(place, hook, hook_out, lower, tmp_path):
    w = by_hand.gemma_scope(tmp_path, place, lower=lower)
    sae = formats.read(tmp_path / place)
    x = by_hand.inputs()
    assert_computes(sae, x, by_hand.jumprelu(w, x))
    assert (sae.hook, sae.hook_out, sae.pre_bias) == (hook, hook_out, False)


def test_gemma_scope_folders_name_model_and_l0(tmp_path):
    place = "models--google--gemma-scope-9b-it-res/snapshots/abc/layer_20/width_16k/average_l0_71"
    by_hand.gemma_scope(tmp_path, place)
    sae = formats.read(tmp_path / place)
    assert sae.metadata["model"]["name"] == "gemma-2-9b-it"
    assert sae.metadata["imported"]["recorded"] == {"l0": 71.0}


def test_gemma_scope_without_its_folders_reads_with_an_unknown_hook_point(tmp_path):
    w = by_hand.gemma_scope(tmp_path, "somewhere")
    x = by_hand.inputs()
    sae = formats.read(tmp_path / "somewhere" / "params.npz", hook="blocks.1.hook_resid_post")
    assert_computes(sae, x, by_hand.jumprelu(w, x))
    assert sae.hook == "blocks.1.hook_resid_post"
    assert formats.read(tmp_path / "somewhere").hook is None


def test_embedding_dictionaries_read_embeddings_before_they_are_scaled(tmp_path):
    place = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44"
    w = by_hand.gemma_scope(tmp_path, place)
    sae, root, x = formats.read(tmp_path / place), 6**0.5, by_hand.inputs()
    latents, _ = by_hand.jumprelu(w, x / root)
    assert_computes(sae, x, (latents, latents @ w["W_dec"] * root + w["b_dec"]))
    assert sae.hook == "hook_embed"


def test_gemma_scope_2_says_where_it_belongs(tmp_path):
    place = "gemma-scope-2-270m-pt/transcoder/layer_15_width_16k_l0_big_affine"
    w = by_hand.gemma_scope_2(tmp_path, place, by_hand.SECOND, skip=True)
    sae, x = formats.read(tmp_path / place), by_hand.inputs()
    assert_computes(sae, x, by_hand.jumprelu(w, x, skip=True))
    assert (sae.hook, sae.hook_out) == ("blocks.15.mlp.hook_in", "blocks.15.hook_mlp_out")


@pytest.mark.parametrize(
    ("change", "skip", "reason"),
    [
        ({"architecture": "topk"}, True, "only jump_relu is read"),
        ({"affine_connection": False}, True, "affine_skip_connection is there"),
        ({}, False, "affine_skip_connection is not there"),
        ({"hf_hook_point_in": 3}, True, "are not text"),
        ({"input_norm": "unit"}, True, "does not know: input_norm"),
    ],
)
def test_a_contradictory_gemma_scope_2_is_refused(change, skip, reason, tmp_path):
    by_hand.gemma_scope_2(tmp_path, "x", {**by_hand.SECOND, **change}, skip=skip)
    with pytest.raises(FormatError, match=reason):
        formats.read(tmp_path / "x")


def test_one_layer_of_a_cross_layer_gemma_scope_is_refused(tmp_path):
    w = by_hand.weights(1)
    tensors = {name.lower(): w[name] for name in ("W_enc", "b_enc", "b_dec", "threshold")}
    save_file(tensors | {"w_dec": torch.ones(16, 2, 6)}, tmp_path / "params.safetensors")
    with pytest.raises(FormatError, match="one layer of a cross-layer transcoder"):
        formats.read(tmp_path)


def test_exported_gemma_scope_files_have_the_hand_written_layout(tmp_path):
    by_hand.gemma_scope(tmp_path, "a")
    formats.export(formats.read(tmp_path / "a"), tmp_path / "b", "gemma-scope")
    with np.load(tmp_path / "a/params.npz") as a, np.load(tmp_path / "b/params.npz") as b:
        assert set(a.files) == set(b.files)
        below = (a["threshold"] < 0).sum()
        assert below > 0  # a threshold below zero lets nothing more through than zero does
        for name in a.files:
            wanted = np.maximum(a[name], 0) if name == "threshold" else a[name]
            assert np.array_equal(wanted, b[name]), name


def test_exported_gemma_scope_2_files_have_the_hand_written_layout(tmp_path):
    by_hand.gemma_scope_2(tmp_path, "a", by_hand.SECOND, skip=True)
    formats.export(formats.read(tmp_path / "a"), tmp_path / "b", "gemma-scope-2")
    a, b = (load_file(tmp_path / each / "params.safetensors") for each in "ab")
    assert set(a) == set(b)
    assert all(torch.equal(a[n].clamp(min=0) if n == "threshold" else a[n], b[n]) for n in a)
    assert (formats.read(tmp_path / "b").hook_out) == "blocks.15.hook_mlp_out"


@pytest.mark.parametrize("format", ["gemma-scope", "gemma-scope-2"])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "batchtopk"])
def test_gemma_scope_holds_every_family_that_is_a_jumprelu(kind, format, tmp_path):
    sae, x = dictionary(kind), by_hand.inputs()
    formats.export(sae, tmp_path, format)
    assert_computes(formats.read(tmp_path), x, (sae.encode(x).dense(), sae(x)))


# OpenAI


def test_openais_relu_computes_what_its_class_says(tmp_path):
    w, x = by_hand.openai(tmp_path / "layer_8.pt"), by_hand.inputs()
    assert_computes(formats.read(tmp_path / "layer_8.pt"), x, by_hand.openai_relu(w, x))


def test_openais_topk_is_refused_because_it_standardizes_every_token(tmp_path):
    by_hand.openai(tmp_path / "v5.pt", "TopK")
    with pytest.raises(FormatError, match="divides every token by its own standard deviation"):
        formats.read(tmp_path / "v5.pt")


@pytest.mark.parametrize("centered", [True, False])
def test_openais_format_takes_our_relu(centered, tmp_path):
    sae, x = dictionary("relu", pre_bias=centered), by_hand.inputs()
    (written,) = formats.export(sae, tmp_path, "openai")
    assert_computes(formats.read(written), x, (sae.encode(x).dense(), sae(x)))
    state = torch.load(written, weights_only=True)
    by_hand_keys = by_hand.openai(tmp_path / "by_hand.pt") and torch.load(tmp_path / "by_hand.pt")
    assert set(state) == set(by_hand_keys)


def test_openais_format_does_not_take_our_topk(tmp_path):
    with pytest.raises(FormatError, match="standardizes every token"):
        formats.export(dictionary("topk"), tmp_path / "out", "openai")
    assert not Path(tmp_path / "out").exists()
