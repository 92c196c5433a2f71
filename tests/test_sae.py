import copy

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.normalization import Normalization, fit_scale
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from tests.contracts import activation_functions, permuted

EXAMPLES = pytest.mark.parametrize("activation", activation_functions(), ids=str)
SCALE = Normalization(scale_in=0.25, scale_out=0.25)


def random_sae(activation=None, d_in=5, d_sae=12, seed=0, normalization=SCALE, **settings) -> SAE:
    """A dictionary whose every parameter is random and none is special."""
    sae = SAE(d_in, d_sae, activation or TopK(3), normalization=normalization, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae


def inputs(rows=40, d_in=5, seed=1):
    return 4 * torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed))


def dense_latents(sae, x):
    return sae.activation(sae.pre_activations(x))


@EXAMPLES
def test_codes_are_the_dense_definitions_latents(activation):
    sae = random_sae(activation)
    torch.testing.assert_close(sae.encode(inputs()).dense(), dense_latents(sae, inputs()))


@EXAMPLES
def test_forward_is_decode_of_encode(activation):
    sae = random_sae(activation)
    x = inputs()
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)))
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae.decode(dense_latents(sae, x)))


def test_the_equations_by_hand():
    sae = SAE(2, 2, TopK(1), normalization=Normalization(scale_in=2.0, scale_out=0.5))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        sae.b_enc.copy_(torch.tensor([0.5, 0.0]))
        sae.W_dec.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, -1.0]))
    # x = (2, 0): times 2 is (4, 0); minus b_dec is (3, 1); plus b_enc is (3.5, 1); top 1: 3.5.
    codes = sae.encode(torch.tensor([[2.0, 0.0]]))
    assert codes.dense().tolist() == [[3.5, 0.0]]
    # 3.5 * (1, 2) + (1, -1) = (4.5, 6); over 0.5 is (9, 12).
    assert sae.decode(codes).tolist() == [[9.0, 12.0]]


def test_any_leading_shape_is_accepted_and_kept_by_forward():
    sae = random_sae()
    x = inputs(24).reshape(2, 3, 4, 5)
    assert sae(x).shape == x.shape
    torch.testing.assert_close(sae.encode(x).dense(), sae.encode(x.reshape(24, 5)).dense())
    assert sae.encode(inputs(1)[0]).n_tokens == 1
    assert sae.encode(torch.empty(0, 5)).n_tokens == 0


@EXAMPLES
def test_a_tokens_code_does_not_depend_on_its_batch(activation):
    sae = random_sae(activation)
    x = inputs()
    together = sae.encode(x)
    for i in (0, 7, 39):
        torch.testing.assert_close(sae.encode(x[i : i + 1]).dense(), together[i].dense())


@EXAMPLES
def test_permuting_latents_permutes_codes_and_keeps_the_reconstruction(activation):
    sae, x = random_sae(activation), inputs()
    order, moved = permuted(activation, 3)
    other = copy.deepcopy(sae)
    other.activation = moved
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.b_enc.copy_(sae.b_enc[order])
        other.W_dec.copy_(sae.W_dec[order])
    torch.testing.assert_close(other.encode(x).dense(), sae.encode(x).dense()[:, order])
    torch.testing.assert_close(other(x), sae(x))


@EXAMPLES
def test_shifting_data_and_b_dec_together_leaves_latents_alone(activation):
    sae, x = random_sae(activation, normalization=Normalization()), inputs()
    shift = torch.tensor([1.0, -2.0, 3.0, 0.5, 8.0])
    shifted = copy.deepcopy(sae)
    with torch.no_grad():
        shifted.b_dec.add_(shift)
    torch.testing.assert_close(
        shifted.encode(x + shift).dense(), sae.encode(x).dense(), atol=1e-4, rtol=1e-4
    )


def test_scaling_data_and_biases_scales_the_reconstruction():
    sae, x = random_sae(normalization=Normalization()), inputs()
    scaled = copy.deepcopy(sae)
    with torch.no_grad():
        scaled.b_dec.mul_(8)
        scaled.b_enc.mul_(8)
    assert torch.equal(scaled(8 * x), 8 * sae(x))  # 8 is a power of two: exact


def test_latents_are_one_contiguous_row_however_the_dictionary_was_made(tmp_path):
    sae = random_sae()
    sae.save(tmp_path / "sae")
    copies = [sae, copy.deepcopy(sae), SAE.load(tmp_path / "sae"), sae.folded()]
    for one in [*copies, random_sae().to(torch.float64)]:
        assert one.W_enc.T.is_contiguous() and one.W_dec.is_contiguous()


@EXAMPLES
def test_a_loaded_dictionary_encodes_the_same_bits(activation, tmp_path):
    sae = random_sae(activation, hook="blocks.3.hook_resid_post", metadata={"model": {"name": "m"}})
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    x = inputs()
    assert torch.equal(again.encode(x).values, sae.encode(x).values)
    assert torch.equal(again.encode(x).indices, sae.encode(x).indices)
    assert torch.equal(again(x), sae(x))
    assert again.settings() == sae.settings()


@EXAMPLES
def test_folding_the_scale_changes_no_bit(activation):
    sae, x = random_sae(activation), inputs()
    folded = sae.folded()
    assert folded.normalization == Normalization()
    assert torch.equal(folded.encode(x).dense(), sae.encode(x).dense())
    assert torch.equal(folded(x), sae(x))


def test_the_scale_brings_a_sample_to_unit_variance_within_root_two():
    for factor in (1e-3, 0.7, 5.0, 300.0):
        sample = factor * inputs(1000) + 17
        deviation = (sample * fit_scale(sample)).var(0).mean().sqrt()
        assert 2**-0.5 <= deviation <= 2**0.5


def test_only_powers_of_two_are_accepted_as_scales():
    with pytest.raises(ConfigError, match=r"scale_in=0\.3\) is not a power of two"):
        Normalization(scale_in=0.3)


def test_gradients_of_forward_equal_the_dense_definitions():
    sae = random_sae().to(torch.float64)
    x = inputs().double().requires_grad_()
    weights = [x, *sae.parameters()]
    sparse = torch.autograd.grad(sae(x).sin().sum(), weights)
    recons = sae.decode(dense_latents(sae, x))
    dense = torch.autograd.grad(recons.sin().sum(), weights)
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_same_seed_gives_the_same_start_and_another_does_not():
    assert torch.equal(SAE(4, 8, TopK(2), seed=3).W_dec, SAE(4, 8, TopK(2), seed=3).W_dec)
    assert not torch.equal(SAE(4, 8, TopK(2), seed=3).W_dec, SAE(4, 8, TopK(2), seed=4).W_dec)


def test_the_start_is_tied_with_unit_directions():
    sae = SAE(4, 8, TopK(2))
    assert torch.equal(sae.W_enc.T, sae.W_dec)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(8))


def test_a_wrong_width_is_refused_with_both_widths():
    sae = random_sae(hook="blocks.3.hook_resid_post")
    with pytest.raises(ShapeError, match=r"width d_in=5 from blocks\.3.*got shape \(3, 6\)"):
        sae.encode(torch.zeros(3, 6))
    with pytest.raises(ShapeError, match="latents of width 7; d_sae is 12"):
        sae.decode(torch.zeros(3, 7))
    with pytest.raises(ConfigError, match="sizes must be positive"):
        SAE(0, 8)


class TestDamagedFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        random_sae().save(tmp_path / "sae")
        return tmp_path / "sae"

    def test_no_folder(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"No dictionary at .*nowhere: no such folder"):
            SAE.load(tmp_path / "nowhere")

    def test_no_manifest(self, folder):
        (folder / "saelab.json").unlink()
        with pytest.raises(CheckpointError, match=r"saelab\.json is missing"):
            SAE.load(folder)

    def test_a_flipped_byte(self, folder):
        weights = folder / "sae_weights.safetensors"
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)
        with pytest.raises(CheckpointError, match="SHA-256 differs"):
            SAE.load(folder)

    def test_a_truncated_file(self, folder):
        weights = folder / "sae_weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-40])
        with pytest.raises(CheckpointError, match="SHA-256 differs"):
            SAE.load(folder)

    def test_broken_json(self, folder):
        (folder / "saelab.json").write_text('{"format": "saelab-dict')
        with pytest.raises(CheckpointError, match="not valid JSON"):
            SAE.load(folder)

    def test_a_newer_version(self, folder):
        text = (folder / "saelab.json").read_text()
        (folder / "saelab.json").write_text(text.replace('"version": 1', '"version": 99'))
        with pytest.raises(CheckpointError, match="version 99; this saelab reads"):
            SAE.load(folder)


def test_decode_takes_codes_of_the_right_dictionary_only():
    codes = SparseCodes.from_dense(torch.eye(7))
    with pytest.raises(ShapeError, match="width 7; d_sae is 12"):
        random_sae().decode(codes)
