import pytest
import torch

from saelab.errors import ShapeError
from saelab.sparse_codes import SparseCodes


def signed_matrix():
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    return torch.where(x.abs() > 0.8, x, 0.0)


def test_dense_and_back_keeps_every_value_and_sign():
    x = signed_matrix()
    assert (x < 0).any() and (x > 0).any()
    assert torch.equal(SparseCodes.from_dense(x).dense(), x)


def test_pairs_in_any_order_give_sorted_rows_without_zeros():
    codes = SparseCodes.from_pairs(
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([3, 2, 0, 1]),
        torch.tensor([5.0, -1.0, 2.0, 0.0]),
        n_tokens=3,
        d_sae=4,
    )
    assert codes.offsets.tolist() == [0, 1, 3, 3]
    assert codes.indices.tolist() == [2, 0, 3]
    assert codes.values.tolist() == [-1.0, 2.0, 5.0]


def test_picks_of_equal_number_drop_exact_zeros():
    codes = SparseCodes.from_top(
        torch.tensor([[3, 1], [0, 2]]), torch.tensor([[5.0, 0.0], [1.0, 2.0]]), 4
    )
    assert codes.dense().tolist() == [[0, 0, 0, 5.0], [1.0, 0, 2.0, 0]]


def test_a_slice_is_the_slice_of_the_matrix():
    x = signed_matrix()
    codes = SparseCodes.from_dense(x)
    assert torch.equal(codes[2:5].dense(), x[2:5])
    assert torch.equal(codes[-1].dense(), x[-1:])
    assert codes[5:2].n_tokens == 0
    with pytest.raises(ShapeError, match="step 2"):
        codes[::2]
    with pytest.raises(IndexError):
        codes[9]


def test_cat_stacks_rows_and_refuses_another_dictionary():
    x = signed_matrix()
    codes = SparseCodes.from_dense(x)
    assert torch.equal(SparseCodes.cat([codes[:4], codes[4:4], codes[4:]]).dense(), x)
    with pytest.raises(ShapeError, match=r"one dictionary; got d_sae \[6, 2\]"):
        SparseCodes.cat([codes, SparseCodes.from_dense(torch.eye(2))])


def test_counts_ignore_the_sign():
    x = signed_matrix()
    codes = SparseCodes.from_dense(x)
    assert torch.equal(codes.l0(), (x != 0).sum(1))
    assert torch.equal(codes.firing_counts(), (x != 0).sum(0))
    assert torch.equal(codes.tokens, x.nonzero()[:, 0])
