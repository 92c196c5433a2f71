import copy

import pytest
import torch

from saelab.activation_functions.coders import MatchingPursuit, SparseCoding
from saelab.errors import CheckpointError, ConfigError
from saelab.metrics import fvu
from saelab.objectives import Reconstruction
from saelab.planted import PlantedAtoms, recovery
from saelab.proximal import PENALTIES, sparse_code
from saelab.pursuit import matching_pursuit
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig

PLANTED = PlantedAtoms(d=20, n_atoms=24, l0=2.0, exact=True)
TERMS = (Reconstruction(),)
CODERS = pytest.mark.parametrize(
    "coder", [MatchingPursuit(3), MatchingPursuit(3, signed=True), SparseCoding("hard", 3, 10)]
)


def tied(coder, d=8, n=20, **settings):
    sae = SAE(d, n, copy.deepcopy(coder), tied=True, **settings)
    if isinstance(sae.activation, SparseCoding):
        sae.activation.lam.fill_(0.1)
    return sae


def store():
    return ActivationStore.from_tensor(PLANTED.sample(4000, seed=1), hook="planted")


CONFIG = TrainConfig(tokens=25_600, batch_size=128, lr=1e-2)
EARLY = pytest.mark.filterwarnings("ignore:.*(latents are active where|of the latents fired)")


@pytest.mark.parametrize("signed", [False, True])
def test_a_matching_pursuit_dictionary_encodes_as_the_pursuit_over_its_decoder(signed):
    sae = tied(MatchingPursuit(4, signed))
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(8))
    x = torch.randn(50, 8)
    found, expected = sae.encode(x), matching_pursuit(sae, x, 4)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.values, expected.values)
    assert bool((found.values < 0).any()) == signed


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_sparse_coding_dictionary_encodes_as_sparse_code_over_its_decoder(penalty):
    sae = tied(SparseCoding(penalty, 3, steps=15))
    x = torch.randn(50, 8)
    expected = sparse_code(sae.W_dec.detach(), x, penalty, 0.1, 15)
    torch.testing.assert_close(sae.encode(x).dense(), expected.dense(), atol=1e-5, rtol=1e-5)


@CODERS
def test_the_dense_definition_agrees_with_the_pairs(coder):
    sae = tied(coder)
    x = torch.randn(6, 8)
    dense = sae.activation(sae.pre_activations(x.reshape(2, 3, 8)))
    torch.testing.assert_close(dense.reshape(6, 20), sae.encode(x).dense())


@CODERS
def test_codes_do_not_depend_on_the_batch(coder):
    sae, x = tied(coder), torch.randn(40, 8)
    whole = sae.encode(x).dense()
    torch.testing.assert_close(sae.encode(x[9]).dense(), whole[9:10], atol=1e-5, rtol=1e-5)


@CODERS
def test_a_saved_dictionary_encodes_to_the_same_bits(coder, tmp_path):
    sae, x = tied(coder), torch.randn(30, 8)
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    assert again.activation.to_json() == sae.activation.to_json()
    assert torch.equal(again.encode(x).dense(), sae.encode(x).dense())
    assert torch.equal(again(x), sae(x))
    torch.testing.assert_close(copy.deepcopy(again).encode(x).dense(), sae.encode(x).dense())


@CODERS
def test_a_copy_codes_with_its_own_decoder(coder):
    sae = tied(coder)
    other = copy.deepcopy(sae)
    with torch.no_grad():
        sae.W_dec.zero_()
    assert other.encode(torch.randn(5, 8)).n_pairs > 0
    assert torch.isfinite(other.encode(torch.randn(5, 8)).values).all()


@CODERS
def test_folding_the_scale_changes_no_reconstruction(coder):
    from saelab.normalization import Normalization

    sae = tied(coder, normalization=Normalization(scale_in=0.25, scale_out=0.25))
    x = torch.randn(20, 8) * 4
    torch.testing.assert_close(sae.folded()(x), sae(x), atol=1e-5, rtol=1e-5)


def test_the_gradient_reaches_the_decoder_with_codes_as_constants():
    sae, x = tied(MatchingPursuit(3), dtype=torch.float64), torch.randn(30, 8).double()
    forward = sae.forward_pairs(x, training=True)
    (x - forward.recons).square().sum().backward()
    codes = sae.encode(x).dense()
    error = x - codes @ sae.W_dec.detach()
    assert sae.W_dec.grad is not None
    torch.testing.assert_close(sae.W_dec.grad, -2 * codes.T @ error)
    assert sae.W_enc.grad is None or not sae.W_enc.grad.any()


@EARLY
def test_matching_pursuit_recovers_planted_atoms():
    sae = tied(MatchingPursuit(2), 20, 32)
    train(sae, store(), CONFIG, terms=TERMS)
    held_out = PLANTED.sample(2000, seed=2)
    assert recovery(PLANTED.atoms, sae.W_dec.detach()) > 0.9
    missed = fvu(held_out, sae(held_out))
    assert missed is not None and missed < 0.15
    torch.testing.assert_close(sae.W_enc.detach(), sae.W_dec.detach().T)
    assert not sae.b_enc.any()


@EARLY
def test_sparse_coding_recovers_planted_atoms_and_finds_its_price():
    sae = SAE(20, 32, SparseCoding("hard", 2, steps=12), tied=True)
    train(sae, store(), CONFIG, terms=TERMS)
    held_out = PLANTED.sample(2000, seed=2)
    assert recovery(PLANTED.atoms, sae.W_dec.detach()) > 0.9
    assert float(sae.encode(held_out).l0().float().mean()) == pytest.approx(2, rel=0.15)
    missed = fvu(held_out, sae(held_out))
    assert missed is not None and missed < 0.2


@EARLY
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    short = TrainConfig(
        tokens=3840, batch_size=128, checkpoint_every_tokens=1280, log_every_tokens=640
    )
    whole, part = (SAE(20, 32, SparseCoding("half", 2, steps=5), tied=True) for _ in range(2))
    train(whole, store(), short, terms=TERMS)

    def stop(done, total, note):  # noqa: ARG001
        if done >= 2560:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(part, store(), short, tmp_path / "run", terms=TERMS, progress=stop)
    again = SAE(20, 32, SparseCoding("half", 2, steps=5), tied=True)
    train(again, store(), short, tmp_path / "run", terms=TERMS)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match=r"MatchingPursuit needs an encoder that is the decoder"):
        SAE(4, 8, MatchingPursuit(2))
    with pytest.raises(ConfigError, match=r"MatchingPursuit is not part of a dictionary yet"):
        MatchingPursuit(2)(torch.zeros(3, 8))
    with pytest.raises(ConfigError, match=r"MatchingPursuit\(k=9\) asks for more latents"):
        SAE(4, 8, MatchingPursuit(9), tied=True)
    with pytest.raises(ConfigError, match=r"MatchingPursuit\(k=0\) keeps no latent"):
        MatchingPursuit(0)
    with pytest.raises(ConfigError, match=r"penalty='firm'\): known are soft"):
        SparseCoding("firm")
    with pytest.raises(ConfigError, match=r"steps=0\): both must be positive"):
        SparseCoding(steps=0)
    with pytest.raises(CheckpointError, match=r"holds lam besides the weights; found \[\]"):
        SparseCoding().load_file_tensors({})
