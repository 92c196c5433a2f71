"""What we save is what SAELens opened when the golden files were made, and it computes the same."""

import json
from pathlib import Path

import pytest
import torch

from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    BatchTopK,
    JumpReLU,
    ReLU,
    TopK,
)
from saelab.files import read_tensors
from saelab.normalization import Normalization
from saelab.sae import SAE

GOLDEN = Path(__file__).parent / "golden" / "saelens"
CASES: dict[str, ActivationFunction] = {
    "abstopk": AbsTopK(4),
    "batchtopk": BatchTopK(4.0),
    "jumprelu": JumpReLU(threshold=0.5, bandwidth=0.1),
    "relu": ReLU(),
    "topk": TopK(4),
}


def golden_sae(name) -> SAE:
    """The dictionary of the golden folder, made again from its seed."""
    sae = SAE(
        6,
        16,
        CASES[name],
        hook="blocks.3.hook_resid_post",
        normalization=Normalization(scale_in=0.25, scale_out=0.25),
        metadata={"model": {"name": "tiny"}},
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if isinstance(sae.activation, BatchTopK):
        sae.activation.threshold.fill_(0.625)
    sae.activation.constrain()
    return sae


@pytest.mark.parametrize("name", CASES)
def test_we_still_write_the_files_that_saelens_opened(name, tmp_path):
    golden_sae(name).save(tmp_path / name)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / name / file).read_bytes() == (GOLDEN / name / file).read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_saelens_computed_the_same_latents_and_reconstructions(name):
    expected = read_tensors(GOLDEN / name / "expected.safetensors")
    sae = SAE.load(GOLDEN / name)
    latents = sae.encode(expected["x"]).dense()
    assert (latents != 0).sum() > 24
    torch.testing.assert_close(latents, expected["latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(expected["x"]), expected["recons"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_has_the_keys_saelens_requires(name):
    config = json.loads((GOLDEN / name / "cfg.json").read_text())
    assert {"d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input"} <= set(config)
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert config["normalize_activations"] == "none"
