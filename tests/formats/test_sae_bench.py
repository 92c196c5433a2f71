"""The object that SAEBench's evaluations take, held to its published base class."""

import pytest
import torch

from saelab import ConfigError
from saelab.formats.sae_bench import SAEBenchAdapter
from tests.formats.by_hand import inputs
from tests.formats.cases import MLP, dictionary


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "relu", "abstopk", "batchtopk"])
def test_reconstructions_are_ours_and_latents_are_in_units_of_the_decoder(kind) -> None:
    sae, x = dictionary(kind), inputs()
    adapter = SAEBenchAdapter(sae)
    latents = adapter.encode(x)
    norms = sae.folded().W_dec.norm(dim=1)
    torch.testing.assert_close(latents, sae.encode(x).dense() * norms)
    torch.testing.assert_close(adapter(x), sae(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(adapter.decode(latents), adapter(x))


def test_the_interface_is_that_of_its_base_class() -> None:
    adapter = SAEBenchAdapter(dictionary("relu"), context_size=64)
    assert adapter.W_enc.shape == (6, 16)
    assert adapter.W_dec.shape == (16, 6)
    assert (adapter.b_enc.shape, adapter.b_dec.shape) == ((16,), (6,))
    assert adapter.check_decoder_norms()
    assert (adapter.cfg.d_in, adapter.cfg.d_sae, adapter.cfg.hook_layer) == (6, 16, 3)
    assert adapter.cfg.hook_name == adapter.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert (adapter.cfg.model_name, adapter.cfg.context_size) == ("tiny", 64)
    assert (adapter.cfg.dtype, adapter.cfg.device) == ("float32", "cpu")


def test_the_encoder_weights_are_those_of_the_latents() -> None:
    sae, x = dictionary("relu"), inputs()
    adapter = SAEBenchAdapter(sae)
    by_weights = ((x - adapter.b_dec) @ adapter.W_enc + adapter.b_enc).relu()
    torch.testing.assert_close(adapter.encode(x), by_weights, rtol=1e-5, atol=1e-4)


def test_batches_of_sequences_keep_their_shape() -> None:
    adapter, x = SAEBenchAdapter(dictionary("topk")), inputs().reshape(4, 6, 6)
    latents = adapter.encode(x)
    assert latents.shape == (4, 6, 16)
    assert adapter(x).shape == x.shape
    torch.testing.assert_close(latents[2, 3], adapter.encode(x[2, 3][None])[0])


def test_moving_it_is_noted_in_its_configuration() -> None:
    adapter = SAEBenchAdapter(dictionary("topk"), dtype=torch.float64)
    assert adapter.encode(inputs()).dtype == torch.float64
    assert adapter.to(dtype=torch.bfloat16).cfg.dtype == "bfloat16"
    assert adapter.dtype == torch.bfloat16
    assert adapter.check_decoder_norms()


def test_a_latent_without_a_direction_is_given_one_and_stays_without_effect() -> None:
    sae, x = dictionary("relu"), inputs()
    with torch.no_grad():
        sae.W_dec[3] = 0
    adapter = SAEBenchAdapter(sae)
    assert adapter.check_decoder_norms()
    assert (adapter.encode(x)[:, 3] == 0).all()
    torch.testing.assert_close(adapter(x), sae(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", [MLP, {"skip": True}, {"hook": "hook_embed"}, {"hook": None}])
def test_what_it_could_not_splice_in_is_refused(settings) -> None:
    with pytest.raises(ConfigError, match="SAEBench"):
        SAEBenchAdapter(dictionary("relu", **settings))
