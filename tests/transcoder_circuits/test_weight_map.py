"""Connections by weights: times activations, scales and patterns they are the contributions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from saelab.attention_circuits import DirectAttribution
from saelab.circuits import LocalReplacement
from saelab.errors import ConfigError
from saelab.sae import SAE
from saelab.transcoder_circuits import Head, WeightMap
from tests.circuits.circuit_cases import (
    N_LATENTS,
    PROMPT,
    autoencoder,
    cross_layer,
    model_of,
    transcoder,
)
from tests.circuits.test_planted_network import oracles, planted

SOME = pytest.mark.parametrize("name", ["gpt2", "gemma2"])
EVERY = torch.arange(N_LATENTS)


def of_heads(name: str, layer: int) -> SAE:
    width = model_of(name).hook_point(f"blocks.{layer}.attn.hook_z").width
    return autoencoder(f"blocks.{layer}.attn.hook_z", width or 0)


def scale_at(replacement: LocalReplacement, hook: str, position: int) -> float:
    """Of the norm whose output is at a place."""
    model = replacement.map.model
    norms = replacement.map.held.scales
    found = model.activations(
        replacement.tokens[None], [f"{p}.output" for p, m in model.module.named_modules()
                                   if m in norms] + [hook]
    )  # fmt: skip
    for path, module in model.module.named_modules():
        if module in norms and torch.equal(found[f"{path}.output"], found[hook]):
            return float(norms[module].flatten()[position])
    raise AssertionError(hook)


@SOME
def test_a_contribution_is_activation_times_scale_times_connection(name: str) -> None:
    saes = [transcoder(0, seed=3), transcoder(2, seed=4)]
    replacement = LocalReplacement(
        model_of(name), saes, PROMPT, cut_heads=True, first_position_as_error=False
    )
    weights = WeightMap(model_of(name), saes)
    connections = weights.connections(1, EVERY, 0)
    targets = (replacement.latents.site == 1).nonzero().flatten()
    terms = DirectAttribution(replacement).terms(replacement.readouts(targets))
    hook = "blocks.2.mlp.hook_in"
    checked = 0
    for row, target in enumerate(targets.tolist()):
        position = int(replacement.latents.position[target])
        scale = scale_at(replacement, hook, position)
        for place in range(len(replacement.latents)):
            if int(replacement.latents.site[place]) == 0 and position == int(
                replacement.latents.position[place]
            ):
                i, j = (int(replacement.latents.index[n]) for n in (place, target))
                value = float(replacement.latents.value[place])
                expected = value * scale * float(connections[j, i])
                # Gemma and Llama compute their norms in single precision.
                assert float(terms.latents[row, place]) == pytest.approx(
                    expected, rel=1e-4, abs=1e-5
                )
                checked += 1
    assert checked > 50


@SOME
def test_through_a_head_it_is_times_the_pattern_too(name: str) -> None:
    saes = [transcoder(0, seed=3), transcoder(2, seed=4)]
    model = model_of(name)
    replacement = LocalReplacement(
        model, saes, PROMPT, cut_heads=True, first_position_as_error=False
    )
    weights, direct = WeightMap(model, saes), DirectAttribution(replacement)
    target = int((replacement.latents.site == 1).nonzero()[-1])
    query, source, head = int(replacement.latents.position[target]), 2, 3
    terms = direct.terms(replacement.readouts(torch.tensor([target])))
    slope = terms.head_slopes[0, 1, head]
    brought = direct.terms([direct.head_value(1, head, query, source, slope)])
    index = replacement.latents.index[target][None]
    connections = weights.connections(1, index, 0, through=Head(1, head))[0]
    scales = [scale_at(replacement, "blocks.2.mlp.hook_in", query),
              scale_at(replacement, "blocks.1.attn.hook_in", source)]  # fmt: skip
    if name == "gemma2":
        scales.append(scale_at(replacement, "blocks.1.hook_attn_out", query))
    pattern = float(replacement.map.held.patterns[1][0, head, query, source])
    factor = pattern * float(torch.tensor(scales).double().prod())
    checked = 0
    for place in range(len(replacement.latents)):
        if replacement.latents.site[place] == 0 and replacement.latents.position[place] == source:
            value = float(replacement.latents.value[place])
            expected = value * factor * float(connections[replacement.latents.index[place]])
            assert float(brought.latents[0, place]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
            checked += 1
    assert checked == 4


@SOME
def test_a_de_embedding_is_what_a_token_adds(name: str) -> None:
    saes = [transcoder(0, seed=3)]
    model = model_of(name)
    replacement = LocalReplacement(
        model, saes, PROMPT, cut_heads=True, first_position_as_error=False
    )
    terms = DirectAttribution(replacement).terms(
        replacement.readouts(torch.arange(len(replacement.latents)))
    )
    table = WeightMap(model, saes).de_embedding(0, EVERY)
    assert table.shape == (N_LATENTS, model.d_vocab)
    for row in range(0, len(replacement.latents), 5):
        position = int(replacement.latents.position[row])
        token = int(replacement.tokens[position])
        scale = scale_at(replacement, "blocks.0.mlp.hook_in", position)
        expected = scale * float(table[replacement.latents.index[row], token])
        assert float(terms.tokens[row]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_connections_of_a_planted_network_are_its_weights() -> None:
    model, planted_weights = planted()
    weights = WeightMap(model, oracles())
    for layer in (1, 2):
        found = weights.connections(layer, torch.arange(6), layer - 1)
        expected = torch.zeros(6, 6).double()
        for (at, source, to), weight in planted_weights.items():
            if at == layer:
                expected[to, source] = weight
        assert torch.allclose(found, expected, atol=1e-9)


def test_activations_weigh_and_units_cancel() -> None:
    model = model_of("gpt2")
    plain, scaled = transcoder(0), transcoder(0)
    with torch.no_grad():
        scaled.W_enc[:, 5] *= 4
        scaled.W_dec[5] /= 4
    strengths: Tensor = torch.rand(N_LATENTS, generator=torch.Generator().manual_seed(0)).double()
    latents = torch.tensor([2, 9])
    one = WeightMap(model, [plain, transcoder(2)])
    other = WeightMap(model, [scaled, transcoder(2)])
    before = one.connections(1, latents, 0, activations=strengths)
    assert torch.allclose(before, one.connections(1, latents, 0) * strengths)
    changed = strengths.clone()
    changed[5] *= 4
    assert torch.allclose(other.connections(1, latents, 0, activations=changed), before)


def test_a_dictionary_of_heads_is_read_through_one_of_its_own() -> None:
    model = model_of("llama")
    weights = WeightMap(model, [transcoder(0), of_heads("llama", 1), transcoder(1)])
    reads_heads = weights.connections(1, EVERY, 0, through=Head(1, 2))
    assert bool(reads_heads.any())
    writes_heads = weights.connections(2, EVERY, 1)
    assert bool(writes_heads.any())
    with pytest.raises(ConfigError, match="through one of its own"):
        weights.connections(1, EVERY, 0)
    with pytest.raises(ConfigError, match="head 4 of layer 1"):
        weights.connections(2, EVERY, 0, through=Head(1, 4))


def test_latents_of_a_cross_layer_transcoder_write_to_every_later_layer() -> None:
    model, clt = model_of("gpt2"), cross_layer()
    found = WeightMap(model, clt).connections(2, EVERY, 0)
    rows = [clt.decoder(0, at).double() / clt.normalizations[at].scale_out for at in (0, 1)]
    module: Any = getattr(model, "module")  # noqa: B009 - of TorchModel
    gain = module.transformer.h[2].ln_2.weight.detach()
    reads = clt.W_enc[2].T * clt.normalizations[2].scale_in * gain
    reads = reads - reads.mean(1, keepdim=True)
    assert torch.allclose(found, reads @ (rows[0] + rows[1]).T, atol=1e-9)


def test_what_does_not_come_before_is_refused() -> None:
    weights = WeightMap(model_of("gpt2"), [transcoder(0), transcoder(2)])
    with pytest.raises(ConfigError, match="Name an earlier source"):
        weights.connections(0, EVERY, 1)
    with pytest.raises(ConfigError, match="There is no dictionary 2"):
        weights.connections(2, EVERY, 0)
    with pytest.raises(ConfigError, match="A dictionary writes blocks"):
        WeightMap(model_of("gpt2"), autoencoder("blocks.1.hook_resid_post"))
