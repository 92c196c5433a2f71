"""The activation function of codebooks: which codes are on, and what gradients they get."""

import copy

import pytest
import torch

from saelab.activation_functions import CODERS, Codes
from saelab.codebooks import codebook_for, spherical_k_means
from saelab.errors import ConfigError, DataError
from saelab.metrics import fvu
from saelab.objectives import Reconstruction
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig


def codebook(k=2, reduce="mean", d=6, n=12, **settings):
    found = SAE(d, n, Codes(k, reduce), tied=True, **settings)
    with torch.no_grad():
        found.W_dec.mul_(torch.linspace(0.5, 3.0, n)[:, None])
        found.W_enc.copy_(found.W_dec.T)
        found.b_dec.copy_(torch.linspace(-0.3, 0.3, d))
    return found


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_codes_of_largest_cosine_are_on_whatever_their_length(reduce):
    sae, x = codebook(3, reduce), torch.randn(40, 6)
    codes = sae.encode(x)
    cosine = torch.nn.functional.cosine_similarity(
        (x - sae.b_dec)[:, None], sae.W_dec[None], dim=-1
    )
    expected = cosine.topk(3, dim=1).indices.sort(dim=1).values
    assert torch.equal(codes.indices.reshape(40, 3), expected)
    weight = 1 / 3 if reduce == "mean" else 1.0
    assert torch.equal(codes.values, torch.full((120,), weight))
    recons = weight * sae.W_dec[expected].sum(1) + sae.b_dec
    torch.testing.assert_close(sae(x), recons)
    torch.testing.assert_close(sae.activation(sae.pre_activations(x)), codes.dense())


def test_all_codes_on_is_one_answer_for_everything():
    sae, x = codebook(12), torch.randn(20, 6)
    center = sae.W_dec.mean(0) + sae.b_dec
    torch.testing.assert_close(sae(x), center.expand(20, -1))


def test_codes_get_the_true_gradient_and_choosing_them_gets_none():
    sae, x = codebook(2, dtype=torch.float64), torch.randn(1, 6).double().requires_grad_(True)
    chosen = sae.encode(x).indices.long()
    weights = torch.randn(6).double()
    (sae(x) * weights).sum().backward()
    expected = torch.zeros(12, 6).double()
    expected[chosen] = weights / 2
    torch.testing.assert_close(sae.W_dec.grad, expected)
    assert sae.W_enc.grad is None or not sae.W_enc.grad.any()
    assert x.grad is None or not x.grad.any()


def test_codes_do_not_depend_on_the_batch_and_survive_the_disk(tmp_path):
    from saelab.normalization import Normalization

    sae = codebook(3, normalization=Normalization(scale_in=0.25, scale_out=0.25))
    x = 4 * torch.randn(30, 6)
    whole = sae.encode(x).dense()
    assert torch.equal(sae.encode(x[7]).dense(), whole[7:8])
    sae.save(tmp_path / "codebook")
    again = SAE.load(tmp_path / "codebook")
    assert again.activation.to_json() == {"name": "codes", "k": 3, "reduce": "mean"}
    assert torch.equal(again.encode(x).dense(), whole)
    assert torch.equal(again(x), sae(x))
    torch.testing.assert_close(sae.folded()(x), sae(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(copy.deepcopy(again).encode(x).dense(), whole)


def test_turning_two_codes_places_turns_what_is_on():
    sae, x = codebook(2), torch.randn(25, 6)
    order = torch.randperm(12)
    moved = copy.deepcopy(sae)
    with torch.no_grad():
        moved.W_dec.copy_(sae.W_dec[order])
        moved.W_enc.copy_(sae.W_enc[:, order])
    assert torch.equal(moved.encode(x).dense(), sae.encode(x).dense()[:, order])
    torch.testing.assert_close(moved(x), sae(x))


def missed(sae, x):
    error = fvu(x, sae(x))
    assert error is not None
    return error


def clusters(n=2000, d=8, centers=20):
    """Planted codes, well apart in direction, of several lengths."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.nn.functional.normalize(torch.randn(centers, d, generator=generator), dim=1)
    codes = directions * torch.linspace(3, 6, centers)[:, None]
    owner = torch.randint(centers, (n,), generator=generator)
    return codes[owner] + 0.05 * torch.randn(n, d, generator=generator), owner


def test_k_means_finds_planted_codes_from_few_rows_and_from_many():
    x, owner = clusters()
    found = codebook_for(x, 20, iterations=15)
    on = found.encode(x).indices.long()
    table = torch.zeros(20, 20).index_put_((owner, on), torch.ones(len(x)), accumulate=True)
    assert int((table > 0).sum()) == 20  # a state, a code, and the other way round
    assert missed(found, x) < 0.01
    random = SAE(8, 20, Codes(1), tied=True)
    assert missed(random, x) > 0.3
    few = spherical_k_means(x[:5], 20)
    assert few.shape == (20, 8) and bool(torch.isfinite(few).all())
    with pytest.raises(DataError, match="all the same"):
        codebook_for(torch.ones(5, 8), 3)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_codes_start_at_the_right_length_however_they_are_joined(reduce):
    x, _ = clusters()
    found = codebook_for(x, 20, k=2, reduce=reduce)
    assert missed(found, x) < 1.0


@pytest.mark.filterwarnings("ignore:.*(latents are active where|of the latents fired)")
def test_training_on_activations_improves_on_the_start():
    x, _ = clusters(4000)
    found = codebook_for(x, 12, k=2)
    before = missed(found, x)
    config = TrainConfig(tokens=19_200, batch_size=128, lr=1e-2, decoder="free")
    train(found, ActivationStore.from_tensor(x, hook="planted"), config, terms=(Reconstruction(),))
    after = missed(found, x)
    assert after < 0.8 * before
    assert torch.equal(found.W_enc, found.W_dec.T)
    assert not found.b_enc.any()


def test_what_cannot_work_is_refused():
    assert CODERS["codes"] is Codes  # which circuits, for one, cannot take apart
    with pytest.raises(ConfigError, match="turns no code on"):
        Codes(0)
    with pytest.raises(ConfigError, match="'mean' or 'sum'"):
        Codes(2, "max")
    with pytest.raises(ConfigError, match=r"Codes\(k=9\) asks for more latents"):
        SAE(4, 8, Codes(9), tied=True)
    with pytest.raises(ConfigError, match="an encoder that is the decoder"):
        SAE(4, 8, Codes(2))
