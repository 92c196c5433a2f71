import copy

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.objectives import Reconstruction
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.active_subspace import active_subspace, initialize_in_subspace
from saelab.training.config import TrainConfig


def low_rank(n=2000, d=24, rank=5, seed=0, offset=3.0):
    """Activations that fill `rank` of d dimensions, away from the origin."""
    generator = torch.Generator().manual_seed(17)
    directions = torch.linalg.qr(torch.randn(d, rank, generator=generator)).Q.T
    center = offset * torch.randn(d, generator=generator)
    generator.manual_seed(seed)
    codes = torch.randn(n, rank, generator=generator) * torch.arange(rank, 0, -1)
    return codes @ directions + center, directions


def outside(rows, basis):
    return (rows - rows @ basis.T @ basis).norm(dim=1)


def test_the_subspace_of_low_rank_data_is_found_whatever_its_center():
    x, directions = low_rank()
    found = active_subspace(x, share=1 - 1e-9)
    assert found.rank == 5
    assert outside(found.basis, directions.double()).max() < 1e-5
    torch.testing.assert_close(found.mean, x.double().mean(0))
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(5).double())
    spread = (x.double() - found.mean) @ found.basis.T
    torch.testing.assert_close(spread.square().mean(0), found.variances[:5])


def test_rank_and_effective_dimension_by_hand():
    # Variances 8, 2 and 0: the first holds 80 %; (8 + 2)^2 / (64 + 4) = 100 / 68.
    x = torch.tensor([[4.0, 0, 1], [-4, 0, 1], [0, 2, 1], [0, -2, 1]])
    assert active_subspace(x, 0.8).rank == 1
    assert active_subspace(x, 0.81).rank == 2
    assert active_subspace(x, 1.0).rank == 2
    assert active_subspace(x).effective_dimension == pytest.approx(100 / 68)
    assert active_subspace(x).held(1) == pytest.approx(0.8)


def test_decoder_directions_start_in_the_span_with_norm_one():
    x, directions = low_rank()
    sae = SAE(24, 100, TopK(4))
    found = initialize_in_subspace(sae, x)
    assert found.rank <= 5
    assert outside(sae.W_dec.detach(), directions).max() < 1e-5
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(100))
    assert torch.linalg.matrix_rank(sae.W_dec.detach(), rtol=1e-4) == found.rank
    gain = sae.W_enc.norm(dim=0)
    torch.testing.assert_close(gain, gain[:1].expand(100))  # one gain for all
    torch.testing.assert_close(sae.W_enc / gain, sae.W_dec.T)


def test_the_start_reconstructs_better_than_a_random_one_and_no_gain_is_better():
    x, _ = low_rank()
    sae, plain = SAE(24, 100, TopK(4)), SAE(24, 100, TopK(4))
    initialize_in_subspace(sae, x)
    with torch.no_grad():
        plain.b_dec.copy_(x.mean(0))

    def error(one):
        return float((x - one(x).detach()).square().sum())

    best = error(sae)
    assert best < error(plain)
    for factor in (0.9, 1.1):
        other = copy.deepcopy(sae)
        with torch.no_grad():
            other.W_enc.mul_(factor)
        assert error(other) > best


def test_a_common_norm_reconstructs_what_unit_rows_do():
    x, _ = low_rank()
    unit, free = SAE(24, 100, TopK(4)), SAE(24, 100, TopK(4))
    initialize_in_subspace(unit, x)
    initialize_in_subspace(free, x, unit_rows=False)
    norms = free.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(100))
    assert abs(norms[0] - 1) > 0.05
    torch.testing.assert_close(free.W_enc, free.W_dec.T)
    torch.testing.assert_close(free(x), unit(x), atol=1e-4, rtol=1e-4)


def test_training_keeps_the_center_and_scale_that_were_set():
    x, _ = low_rank()
    sae = SAE(24, 32, TopK(4), seed=3)
    initialize_in_subspace(sae, 50 * x)
    scale, center = sae.normalization, sae.b_dec.clone()
    assert scale.scale_in < 0.1
    store = ActivationStore.from_tensor(50 * x)
    train(sae, store, TrainConfig(tokens=64, batch_size=64, lr=1e-9), terms=(Reconstruction(),))
    assert sae.normalization == scale
    torch.testing.assert_close(sae.b_dec, center)


def test_a_transcoder_starts_in_the_span_of_what_it_writes():
    y, directions = low_rank()
    x = torch.randn(2000, 10, generator=torch.Generator().manual_seed(4))
    sae = SAE(10, 100, TopK(4), hook="a", hook_out="b", d_out=24)
    before = sae.W_enc.detach().clone()
    initialize_in_subspace(sae, x, y)
    assert outside(sae.W_dec.detach(), directions).max() < 1e-5
    turned = torch.nn.functional.cosine_similarity(before, sae.W_enc.detach(), dim=0)
    torch.testing.assert_close(turned, torch.ones(100))
    torch.testing.assert_close(sae.b_dec, y.mean(0) * sae.normalization.scale_out)


def test_the_rank_can_be_chosen():
    x, _ = low_rank()
    sae = SAE(24, 100, TopK(4))
    assert initialize_in_subspace(sae, x, rank=2).rank == 2
    assert torch.linalg.matrix_rank(sae.W_dec.detach(), rtol=1e-4) == 2


@pytest.mark.filterwarnings("ignore:.*of the latents fired")
def test_fewer_latents_die_on_low_rank_data_than_from_a_random_start():
    generator = torch.Generator().manual_seed(0)
    place = torch.linalg.qr(torch.randn(64, 8, generator=generator)).Q.T
    x = torch.randn(8000, 8, generator=generator) @ place
    dead, missed = {}, {}
    for rank in (None, 8, 4):
        sae = SAE(64, 256, TopK(4))
        if rank is not None:
            initialize_in_subspace(sae, x, rank=rank)
        config = TrainConfig(tokens=25_600, batch_size=256, lr=1e-3)
        train(sae, ActivationStore.from_tensor(x), config, terms=(Reconstruction(),))
        dead[rank] = float((sae.encode(x).firing_counts() == 0).float().mean())
        with torch.no_grad():
            missed[rank] = float((x - sae(x)).square().sum() / x.square().sum())
    # Measured: .52 of the latents dead and fvu .22 from a random start; .06 and .08 from the data's
    # own rank; .56 and .14 from half of it, which is why too small a rank is worse than none.
    assert dead[8] < 0.3 * dead[None]
    assert missed[8] < 0.6 * missed[None]
    assert dead[4] > 2 * dead[8] and missed[4] > 1.3 * missed[8]


def test_what_makes_no_sense_is_refused():
    x, _ = low_rank(100)
    with pytest.raises(ConfigError, match="share=0"):
        active_subspace(x, 0.0)
    with pytest.raises(DataError, match="constant or not finite"):
        active_subspace(torch.ones(10, 4))
    with pytest.raises(ConfigError, match=r"rank=25\): between 1 and 24"):
        initialize_in_subspace(SAE(24, 32), x, rank=25)
    with pytest.raises(ConfigError, match="needs targets for a transcoder"):
        initialize_in_subspace(SAE(24, 32), x, x)
    with pytest.raises(ShapeError, match=r"reads 24 and writes 24; the sample is \(5, 8\)"):
        initialize_in_subspace(SAE(24, 32), torch.randn(5, 8))
