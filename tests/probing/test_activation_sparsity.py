"""PPL-p%: thresholds by contribution, and the rise of the perplexity that was asked for."""

import pytest
import torch
from torch import nn

from probes.neuron_roles import output_weights
from saelab.errors import ConfigError
from saelab.models import load_model
from saelab.probing.activation_sparsity import (
    MlpLayer,
    activation_ratio,
    cett,
    sparsity_profile,
    threshold_at,
)
from tests.tiny_models import random_tokens, tiny_gpt2, tiny_llama

ACTS = torch.tensor([[3.0, -4.0, 0.0, 1.0]])
W_OUT = torch.tensor([[1.0, 0.0], [0.0, 0.5], [9.0, 9.0], [0.0, 1.0]])
# contributions |a||w|: 3, 2, 0, 1; output (3, -2 + 1)


def test_contributions_not_activations_are_compared() -> None:
    assert activation_ratio(ACTS, W_OUT, 2.5) == 0.25  # only neuron 0, though |a| of 1 is larger
    assert activation_ratio(ACTS, W_OUT, 2.0) == 0.5
    assert activation_ratio(ACTS, W_OUT, 0.0) == 0.75  # exact zeros are never active
    whole = (3.0**2 + 1.0**2) ** 0.5
    assert cett(ACTS, W_OUT, 1.5) == pytest.approx(1.0 / whole)  # neuron 3 dropped: (0, 1)
    assert cett(ACTS, W_OUT, 2.5) == pytest.approx(1.0 / whole)  # 1 and 3: (0, -2) + (0, 1)
    assert cett(ACTS, W_OUT, 0.0) == 0.0


def test_the_threshold_of_an_error_keeps_it() -> None:
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(50, 40, generator=generator)
    W_out = torch.randn(40, 16, generator=generator)
    found = [threshold_at(acts, W_out, wanted) for wanted in (0.0, 0.1, 0.3, 0.6)]
    assert found[0] == 0.0 and found == sorted(found)
    for wanted, threshold in zip((0.1, 0.3, 0.6), found[1:], strict=True):
        assert cett(acts, W_out, threshold) == pytest.approx(wanted, abs=0.02)
        assert cett(acts, W_out, threshold) <= wanted
    # a neuron that writes twice as much is half as strong: nothing changes
    assert threshold_at(acts / 2, W_out * 2, 0.3) == pytest.approx(found[2], rel=1e-4)


def test_the_perplexity_rises_by_what_was_asked() -> None:
    model = load_model(tiny_llama(d_vocab=50), name="tiny", device="cpu")
    layers = [
        MlpLayer(hook=hook, W_out=output_weights(model, hook))
        for hook in (f"blocks.{i}.mlp.hook_post" for i in range(3))
    ]
    tokens = random_tokens(6, 24)
    none = sparsity_profile(model, layers, tokens, p=0.0)
    assert none.point.ppl_ratio == 1.0 and none.point.ratio > 0.99
    found = sparsity_profile(model, layers, tokens, p=2.0, tolerance=2e-3)
    assert found.point.ppl_ratio == pytest.approx(1.02, abs=3e-3)
    assert 0 < found.point.ratio < 1
    ratios = [one.ratio for one in found.tried]
    assert ratios == sorted(ratios, reverse=True)  # a larger error keeps fewer
    assert [one.cett for one in found.tried] == sorted(one.cett for one in found.tried)
    with pytest.raises(ConfigError, match="p >= 0"):
        sparsity_profile(model, layers, tokens, p=-1.0)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_output_weights_are_what_neurons_write(make) -> None:  # type: ignore[no-untyped-def]
    model = load_model(make(), name="tiny", device="cpu")
    hook = "blocks.1.mlp.hook_post"
    W_out = output_weights(model, hook)
    tokens = random_tokens(2, 6)
    found = model.activations(tokens, [hook, "blocks.1.hook_mlp_out"])
    module = model.module.get_submodule(model.hook_point(hook).module)  # type: ignore
    assert isinstance(module, nn.Module)
    bias = 0.0 if module.bias is None else module.bias.detach()  # type: ignore
    assert torch.allclose(found[hook] @ W_out + bias, found["blocks.1.hook_mlp_out"], atol=1e-4)
