import pytest
import torch

from saelab.activation_functions import ACTIVATION_FUNCTIONS, ReLU, TopK, from_json
from saelab.errors import CheckpointError, ConfigError
from saelab.sparse_codes import SparseCodes
from tests.contracts import activation_functions

EXAMPLES = pytest.mark.parametrize("activation", activation_functions(), ids=str)


def pre_acts(rows=20, d_sae=12, seed=0, shift=0.0):
    return torch.randn(rows, d_sae, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_contract_covers_every_activation_function():
    assert {type(a) for a in activation_functions()} == set(ACTIVATION_FUNCTIONS.values())


@EXAMPLES
def test_unsigned_latents_are_not_negative(activation):
    if not activation.signed:
        assert (activation(pre_acts()) >= 0).all()


@EXAMPLES
@pytest.mark.parametrize("shift", [0.0, -2.0, -6.0, 3.0])
def test_selected_pairs_hold_exactly_the_definitions_latents(activation, shift):
    z = pre_acts(shift=shift)
    row, latent, value = activation.select(z)
    assert torch.equal(value, z[row, latent])
    assert (row.diff() >= 0).all()
    found = SparseCodes.from_pairs(row, latent, activation.at_pairs(value, latent), 20, 12).dense()
    assert torch.equal(found, activation(z))


@EXAMPLES
def test_any_batch_shape_gives_the_same_latents(activation):
    z = pre_acts(12)
    assert torch.equal(activation(z.reshape(3, 4, 12)), activation(z).reshape(3, 4, 12))
    assert torch.equal(activation(z[5]), activation(z)[5])


@EXAMPLES
def test_permuting_latents_permutes_the_output(activation):
    z = pre_acts()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(activation(z[:, order]), activation(z)[:, order])


@EXAMPLES
def test_the_settings_survive_json(activation):
    again = from_json(activation.to_json())
    assert type(again) is type(activation) and again.to_json() == activation.to_json()


@EXAMPLES
def test_gradient_at_active_pairs_equals_the_definitions(activation):
    z = pre_acts().double().requires_grad_()
    row, latent, value = activation.select(z.detach())
    pairs = value.clone().requires_grad_()
    weights = torch.arange(20 * 12, dtype=torch.float64).reshape(20, 12)
    (activation(z) * weights).sum().backward()
    (activation.at_pairs(pairs, latent) * weights[row, latent]).sum().backward()
    assert z.grad is not None and pairs.grad is not None
    assert torch.equal(z.grad[row, latent], pairs.grad)
    z.grad[row, latent] = 0
    assert not z.grad.any()


def test_topk_by_hand():
    z = torch.tensor([[4.0, -1.0, 2.0, 3.0], [-4.0, -1.0, -2.0, 1.0]])
    # k = 2: row one keeps 4 and 3; row two keeps 1 and -1, and the ReLU drops -1.
    assert TopK(2)(z).tolist() == [[4.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]]


def test_topk_keeps_at_most_k_and_exactly_k_where_that_many_are_positive():
    active = (TopK(3)(pre_acts(200)) != 0).sum(1)
    positive = (pre_acts(200) > 0).sum(1)
    assert torch.equal(active, positive.clamp(max=3))


def test_topk_refuses_a_k_that_makes_no_sense():
    with pytest.raises(ConfigError, match=r"TopK\(k=0\) keeps no latent"):
        TopK(0)
    with pytest.raises(ConfigError, match=r"TopK\(k=9\) asks for more latents .*d_sae=8"):
        TopK(9).setup(8)


def test_relu_is_the_positive_part():
    assert ReLU()(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.0, 2.0]


def test_an_unknown_activation_function_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r"'swish'; this version knows relu, topk"):
        from_json({"name": "swish"})
    with pytest.raises(CheckpointError, match="settings of 'topk' are not understood"):
        from_json({"name": "topk", "kk": 3})
