"""Every sparse kernel against its plain dense counterpart, in float64 where it computes."""

import pytest
import torch

from saelab.errors import ConfigError
from saelab.kernels import (
    GradientBuffers,
    Pairs,
    encode_pairs,
    pair_products,
    sparse_decode,
    sparse_pre_activations,
    squared_error,
    sum_rows,
    top_k,
)
from saelab.kernels.encoding import CHUNK_BYTES
from saelab.kernels.pairs import sum_columns
from saelab.kernels.selection import group_count


def random_pairs(n_tokens=7, n_latents=11, share=0.3, seed=0) -> tuple[Pairs, torch.Tensor]:
    """A random pattern and its dense 0/1 mask; some tokens and some latents have no pair."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n_tokens, n_latents, generator=generator) < share
    mask[2] = False
    mask[:, 5] = False
    tokens, indices = mask.nonzero(as_tuple=True)
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(tokens, minlength=n_tokens), 0, out=offsets[1:])
    return Pairs(offsets, indices, n_latents), mask


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense_of(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask] = values
    return dense


@pytest.mark.parametrize(
    ("columns", "k"),
    [(8, 3), (100, 100), (2048, 1), (4608, 32), (9216, 32), (9216, 200), (3001, 7)],
)
def test_top_k_returns_exactly_the_values_of_a_full_sort(columns, k):
    x = torch.randn(13, columns, generator=torch.Generator().manual_seed(k))
    values, indices = top_k(x, k)
    assert torch.equal(values.sort(1, descending=True).values, x.topk(k, dim=1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_top_k_is_exact_when_all_large_values_share_one_group():
    # Columns j, j + G, j + 2G ... are one group: the worst case for group maxima.
    groups = group_count(4608, 4)
    assert groups is not None
    x = torch.zeros(1, 4608)
    x[0, 5::groups] = torch.arange(1.0, 4608 // groups + 1)
    values, _ = top_k(x, 4)
    assert torch.equal(values.sort(1, descending=True).values, x.topk(4, dim=1).values)


def test_top_k_handles_ties_and_negative_rows():
    x = torch.full((2, 4608), -3.0)
    values, indices = top_k(x, 32)
    assert torch.equal(values, torch.full((2, 32), -3.0))
    assert all(len(set(row.tolist())) == 32 for row in indices)


def test_top_k_refuses_more_than_there_are():
    with pytest.raises(ConfigError, match=r"top_k\(k=9\) needs 1 <= k <= 8"):
        top_k(torch.zeros(2, 8), 9)


def test_group_count_divides_and_leaves_room_for_k():
    for columns in (2048, 4608, 9216, 36864, 24576):
        groups = group_count(columns, 32)
        assert groups is not None and columns % groups == 0 and groups >= 32


def test_sum_rows_is_the_sparse_dense_product():
    pairs, mask = random_pairs()
    values, matrix = normal(pairs.n_pairs), normal(11, 4, seed=2)
    expected = dense_of(mask, values) @ matrix
    torch.testing.assert_close(sum_rows(pairs, values, matrix), expected)


def test_pair_products_are_entries_of_the_full_product():
    pairs, mask = random_pairs()
    left, right = normal(7, 4), normal(11, 4, seed=2)
    torch.testing.assert_close(pair_products(pairs, left, right), (left @ right.T)[mask])


@pytest.mark.parametrize("accumulate", [False, True])
def test_sum_columns_is_the_transposed_product(accumulate):
    pairs, mask = random_pairs()
    values, matrix = normal(pairs.n_pairs), normal(7, 4, seed=2)
    out = torch.full((11, 4), 2.0, dtype=torch.float64)
    sum_columns(pairs, values, matrix, out, accumulate)
    product = dense_of(mask, values).T @ matrix
    torch.testing.assert_close(out, product + 2.0 if accumulate else product)


def test_by_latent_lists_each_latents_pairs_in_token_order():
    pairs, mask = random_pairs()
    offsets, order, tokens = pairs.by_latent()
    assert offsets.tolist() == [0, *mask.sum(0).cumsum(0).tolist()]
    assert torch.equal(pairs.indices[order], pairs.indices.sort(stable=True).values)
    for latent in range(11):
        rows = tokens[offsets[latent] : offsets[latent + 1]]
        assert rows.tolist() == mask[:, latent].nonzero().squeeze(1).tolist()


def test_an_empty_pattern_gives_zeros():
    pairs = Pairs(torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 5)
    assert sum_rows(pairs, torch.empty(0), torch.ones(5, 2)).tolist() == [[0.0, 0.0]] * 3
    assert pair_products(pairs, torch.ones(3, 2), torch.ones(5, 2)).shape == (0,)
    out = torch.ones(5, 2)
    sum_columns(pairs, torch.empty(0), torch.ones(3, 2), out, accumulate=False)
    assert out.tolist() == [[0.0, 0.0]] * 5


def positive(pre_acts):
    row, latent = (pre_acts > 0).nonzero(as_tuple=True)
    return row, latent, pre_acts[row, latent]


def test_encoding_in_chunks_equals_encoding_at_once():
    # 5000 latents of float64 in 64 MiB chunks: 1677 rows would fit, so 1024 is the chunk.
    x, rows, bias = normal(2100, 3), normal(5000, 3, seed=2), normal(5000, seed=3)
    assert CHUNK_BYTES // (8 * 5000) > 1024
    ((pairs, values),) = encode_pairs(x, rows, bias, [positive])
    expected = x @ rows.T + bias
    mask = expected > 0
    assert torch.equal(pairs.offsets, torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).long())
    assert torch.equal(pairs.indices, mask.nonzero(as_tuple=True)[1])
    torch.testing.assert_close(values, expected[mask])


def test_several_selections_share_one_pass():
    x, rows, bias = normal(5, 3), normal(8, 3, seed=2), normal(8, seed=3)

    def negative(pre_acts):
        row, latent = (pre_acts < 0).nonzero(as_tuple=True)
        return row, latent, pre_acts[row, latent]

    (above, _), (below, values) = encode_pairs(x, rows, bias, [positive, negative])
    assert above.n_pairs + below.n_pairs == 40
    assert (values < 0).all()


def test_encoding_no_tokens_gives_no_pairs():
    ((pairs, values),) = encode_pairs(
        torch.empty(0, 3), torch.ones(4, 3), torch.zeros(4), [positive]
    )
    assert pairs.n_tokens == 0 and len(values) == 0


class Problem:
    """A small sparse autoencoder, written twice: with the kernels, and densely."""

    def __init__(self, b_enc_shift=0.0):
        self.x = normal(9, 4)
        self.W_enc = normal(6, 4, seed=2).T.requires_grad_()
        self.b_enc = (normal(6, seed=3) + b_enc_shift).requires_grad_()
        self.W_dec = normal(6, 4, seed=4).requires_grad_()
        self.b_dec = normal(4, seed=5).requires_grad_()
        self.parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    def sparse(self, buffers=None):
        centred = self.x - self.b_dec.detach()
        ((pairs, values),) = encode_pairs(centred, self.W_enc.T.detach(), self.b_enc, [positive])
        z = sparse_pre_activations(
            values, centred, self.W_enc, self.b_enc, self.b_dec, pairs, buffers
        )
        # A smooth function of the pre-activations, so that the gradient depends on their value.
        recons = sparse_decode(z.sin() + z, self.W_dec, self.b_dec, pairs, buffers)
        return (recons - self.x).square().sum()

    def dense(self):
        z = (self.x - self.b_dec) @ self.W_enc + self.b_enc
        f = torch.where(z > 0, z.sin() + z, 0.0)
        return (f @ self.W_dec + self.b_dec - self.x).square().sum()


@pytest.mark.parametrize("shift", [0.0, -6.0], ids=["usual", "almost nothing active"])
def test_sparse_gradients_equal_dense_autograd(shift):
    problem = Problem(shift)
    expected = torch.autograd.grad(problem.dense(), problem.parameters)
    found = torch.autograd.grad(problem.sparse(), problem.parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradient_buffers_hold_what_autograd_would_return_step_after_step():
    problem = Problem()
    expected = torch.autograd.grad(problem.sparse(), problem.parameters)
    buffers = GradientBuffers(problem.parameters)
    for _ in range(2):  # the second step must replace, not add to, the first
        buffers.begin()
        problem.sparse(buffers).backward()
        buffers.finish()
        for parameter, gradient in zip(problem.parameters, expected, strict=True):
            torch.testing.assert_close(buffers.of(parameter), gradient)
    assert all(parameter.grad is None for parameter in problem.parameters)


def test_two_uses_in_one_step_add_up_in_the_buffers():
    problem = Problem()
    expected = torch.autograd.grad(problem.sparse(), problem.parameters)
    buffers = GradientBuffers(problem.parameters)
    buffers.begin()
    (problem.sparse(buffers) + problem.sparse(buffers)).backward()
    buffers.finish()
    for parameter, gradient in zip(problem.parameters, expected, strict=True):
        torch.testing.assert_close(buffers.of(parameter), 2 * gradient)


def test_what_nothing_wrote_to_is_zero():
    parameter = torch.ones(2, 2)
    buffers = GradientBuffers([parameter])
    buffers.begin()
    buffers.add(parameter, torch.ones(2, 2))
    buffers.finish()
    buffers.begin()
    buffers.finish()
    assert not buffers.of(parameter).any()


def test_gradients_pass_a_finite_difference_check():
    problem = Problem()

    def loss(x, W_enc, b_enc, W_dec, b_dec):
        centred = x - b_dec.detach()
        ((pairs, values),) = encode_pairs(
            centred.detach(), W_enc.T.detach().contiguous(), b_enc.detach(), [positive]
        )
        z = sparse_pre_activations(values, centred, W_enc, b_enc, b_dec, pairs)
        return sparse_decode(z, W_dec, b_dec, pairs)

    inputs = (problem.x.clone().requires_grad_(), *problem.parameters)
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6)


def test_squared_error_and_its_gradients_are_those_of_the_plain_expression():
    recons, targets = normal(7, 4).requires_grad_(), normal(7, 4, seed=2).requires_grad_()
    expected = (recons - targets).square().sum()
    found = squared_error(recons, targets)
    torch.testing.assert_close(found, expected)
    both = [torch.autograd.grad(3 * loss, [recons, targets]) for loss in (expected, found)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)
