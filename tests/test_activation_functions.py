import math

import pytest
import torch

from saelab.activation_functions import (
    ACTIVATION_FUNCTIONS,
    AbsTopK,
    BatchAbsTopK,
    BatchTopK,
    GroupMax,
    JumpReLU,
    ReLU,
    SelectAgain,
    TopK,
    from_json,
)
from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import encode_pairs
from saelab.sparse_codes import SparseCodes
from tests.contracts import activation_functions, permuted

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
    order, moved = permuted(activation, 1)
    assert torch.equal(moved(z[:, order]), activation(z)[:, order])


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
        TopK(9).setup(4, 8)


def test_relu_is_the_positive_part():
    assert ReLU()(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.0, 2.0]


def test_an_unknown_activation_function_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r"'swish'; this version knows abstopk, .*topk"):
        from_json({"name": "swish"})
    with pytest.raises(CheckpointError, match="settings of 'topk' are not understood"):
        from_json({"name": "topk", "kk": 3})


class TestSigned:
    def test_abstopk_by_hand(self):
        z = torch.tensor([[4.0, -5.0, 2.0, 3.0], [-4.0, -1.0, -2.0, 1.0]])
        assert AbsTopK(2)(z).tolist() == [[4.0, -5.0, 0.0, 0.0], [-4.0, 0.0, -2.0, 0.0]]

    def test_abstopk_is_topk_of_both_signs(self):
        # AbsTopK_k(z) = a - b where (a, b) = TopK_k([z, -z]): exact, because one of the two signs
        # of an entry is positive and the other can never be among the k largest with it.
        z = pre_acts(50)
        both = TopK(3)(torch.cat([z, -z], dim=1))
        assert torch.equal(AbsTopK(3)(z), both[:, :12] - both[:, 12:])

    @pytest.mark.parametrize("activation", [AbsTopK(3), BatchAbsTopK(3)], ids=str)
    def test_flipping_the_sign_of_the_input_flips_the_latents(self, activation):
        assert torch.equal(activation(-pre_acts()), -activation(pre_acts()))


class TestBudget:
    """What BatchTopK and BatchAbsTopK do in training: an exact selection over the batch."""

    def select(self, activation, x, rows):
        activation.setup(x.shape[1], len(rows))
        while True:
            ((pairs, values),) = encode_pairs(
                x, rows, torch.zeros(len(rows)), [activation.select_training]
            )
            try:
                kept = activation.settle(pairs, values)
            except SelectAgain:
                continue
            tokens, latents = pairs.tokens(), pairs.indices
            if kept is not None:
                tokens, latents, values = tokens[kept], latents[kept], values[kept]
            return SparseCodes.from_pairs(tokens, latents, values, len(x), len(rows)).dense()

    @pytest.mark.parametrize("kind", [BatchTopK, BatchAbsTopK])
    @pytest.mark.parametrize("k", [0.5, 2.5, 7])
    def test_the_batchs_strongest_entries_are_kept_and_no_other(self, kind, k):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(200, 8, generator=generator)
        activation = kind(float(k))
        for scale in (1.0, 0.2, 30.0):  # a moving distribution: the guess is off both ways
            x = scale * torch.randn(40, 8, generator=generator)
            z = x @ rows.T
            strength = activation.strength(z)
            budget = int(k * 40)
            border = strength.flatten().topk(budget).values.min()
            expected = torch.where(strength >= border, z, torch.zeros_like(z))
            found = self.select(activation, x, rows)
            torch.testing.assert_close(found, expected)
            assert (found != 0).sum() == budget
        assert activation.repeats > 0

    def test_fewer_positive_entries_than_the_budget_are_all_kept(self):
        rows = -torch.ones(6, 2)
        x = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [1.0, 2.0]])
        assert (self.select(BatchTopK(4.0), x, rows) > 0).sum() == 6  # only token 1 has any

    def test_the_threshold_is_the_mean_of_the_weakest_kept(self):
        activation = BatchTopK(2.0)
        for weakest in (1.0, 2.0, 6.0):
            activation.observe(torch.tensor([weakest + 5, weakest]))
        assert activation.threshold.item() == pytest.approx(3.0)
        for _ in range(2000):
            activation.observe(torch.tensor([0.5]))
        assert activation.threshold.item() == pytest.approx(0.5, abs=1e-6)

    def test_inference_uses_the_threshold_alone(self):
        activation = BatchTopK(2.0)
        activation.threshold.fill_(0.7)
        z = torch.tensor([[0.6, 0.8, 3.0], [0.1, 0.2, 0.3]])
        expected = torch.tensor([[0.0, 0.8, 3.0], [0.0, 0.0, 0.0]])
        assert torch.equal(activation(z), expected)


class TestJumpReLU:
    def gate(self, threshold=0.5, bandwidth=0.2, d_sae=1):
        gate = JumpReLU(threshold=threshold, bandwidth=bandwidth)
        gate.setup(4, d_sae)
        return gate

    def test_by_hand(self):
        z = torch.tensor([[0.4, 0.6, -1.0, 0.5]])
        assert self.gate(d_sae=4)(z).tolist() == [[0.0, 0.6000000238418579, 0.0, 0.0]]

    def test_the_window_estimates_how_l0_moves_with_the_threshold(self):
        # z ~ N(0, 1): d P(z > t) / dt = -density(t); at t = 0.7 that is -0.3123.
        z = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
        gate = self.gate(threshold=0.7, bandwidth=0.1)
        indices = torch.zeros(len(z), dtype=torch.int64)
        gate.active(z, indices).mean().backward()
        assert gate.threshold.grad is not None
        exact = -math.exp(-0.245) / math.sqrt(2 * math.pi)
        assert gate.threshold.grad.item() == pytest.approx(exact, rel=0.03)

    def test_the_gradient_to_the_threshold_by_hand(self):
        z = torch.tensor([0.45, 0.55, 0.61, 0.3], requires_grad=True)
        gate = self.gate()
        # Window 0.4 to 0.6: the first two count, each -0.5 / 0.2 times its weight.
        latents = gate.at_pairs(z, torch.zeros(4, dtype=torch.int64))
        (latents * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
        assert gate.threshold.grad is not None and z.grad is not None
        assert gate.threshold.grad.item() == pytest.approx(-2.5 * 11)
        assert z.grad.tolist() == [0.0, 10.0, 100.0, 0.0]

    def test_counting_sends_no_gradient_to_the_encoder(self):
        z = torch.tensor([0.45, 0.55], requires_grad=True)
        self.gate().active(z, torch.zeros(2, dtype=torch.int64)).sum().backward()
        assert z.grad is None

    def test_training_selects_the_window_below_the_threshold_too(self):
        z = torch.tensor([[0.39, 0.45, 0.55, 0.3]])
        gate = self.gate(d_sae=4)
        assert gate.select_training(z)[1].tolist() == [1, 2]
        assert gate.select(z)[1].tolist() == [2]

    def test_thresholds_cannot_become_negative(self):
        gate = self.gate(d_sae=3)
        with torch.no_grad():
            gate.threshold.copy_(torch.tensor([-0.1, 0.0, 0.2]))
        gate.constrain()
        assert gate.threshold.tolist() == pytest.approx([0.0, 0.0, 0.2])


def test_groupmax_by_hand():
    z = torch.tensor([[4.0, -1.0, 2.0, 3.0, -5.0, -4.0]])
    assert GroupMax(3)(z).tolist() == [[4.0, 0.0, 0.0, 3.0, 0.0, 0.0]]
    with pytest.raises(ConfigError, match=r"GroupMax\(k=4\) needs groups .*d_sae=6.* is: 4"):
        GroupMax(4).setup(2, 6)
