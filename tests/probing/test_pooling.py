"""Pooling of tokens, dense and sparse, and the two tails of signed latents."""

from typing import get_args

import pytest
import torch

from saelab.errors import DataError
from saelab.probing.pooling import Pooling, pool, pool_codes, two_halves
from saelab.sparse_codes import SparseCodes

EXAMPLE = torch.tensor([0, 0, 0, 1, 2, 2])


def _values(signed: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=generator) * (torch.rand(6, 5, generator=generator) < 0.5)
    return x if signed else x.abs()


@pytest.mark.parametrize("how", get_args(Pooling))
@pytest.mark.parametrize("signed", [True, False])
def test_sparse_and_dense_pooling_agree(how: Pooling, signed: bool) -> None:
    x = _values(signed)
    wanted = torch.stack([_by_hand(part, how) for part in x.split([3, 1, 2])])
    assert torch.allclose(pool(x, EXAMPLE, how), wanted)
    assert torch.allclose(pool_codes(SparseCodes.from_dense(x), EXAMPLE, how).dense(), wanted)


def _by_hand(part: torch.Tensor, how: str) -> torch.Tensor:
    if how == "last":
        return part[-1]
    if how == "mean":
        return part.sum(0) / len(part)
    if how == "mean_size":
        return part.abs().sum(0) / len(part)
    if how == "max":
        return part.max(0).values
    rows = part.abs().argmax(0)
    return part[rows, torch.arange(part.shape[1])]


def test_the_mean_of_a_signed_latent_cancels_and_the_others_do_not() -> None:
    x = torch.tensor([[2.0], [-2.0]])
    codes, one = SparseCodes.from_dense(x), torch.tensor([0, 0])
    assert pool_codes(codes, one, "mean").dense().tolist() == [[0.0]]
    assert pool_codes(codes, one, "mean_size").dense().tolist() == [[2.0]]
    assert pool_codes(two_halves(codes), one, "mean").dense().tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("how", ["last", "mean", "mean_size", "peak"])
def test_turning_a_latent_around_turns_its_pooled_value_around_or_leaves_it(how: Pooling) -> None:
    flip = torch.tensor([1.0, -1, 1, -1, -1])
    before = pool_codes(SparseCodes.from_dense(_values()), EXAMPLE, how).dense()
    after = pool_codes(SparseCodes.from_dense(_values() * flip), EXAMPLE, how).dense()
    assert torch.allclose(after, before if how == "mean_size" else before * flip)


def test_turning_a_latent_around_swaps_its_halves() -> None:
    x = _values()
    halves = two_halves(SparseCodes.from_dense(x)).dense()
    turned = two_halves(SparseCodes.from_dense(-x)).dense()
    assert (halves >= 0).all()
    assert torch.equal(halves[:, :5] - halves[:, 5:], x)
    assert torch.equal(turned, torch.cat([halves[:, 5:], halves[:, :5]], 1))


def test_a_gap_in_the_examples_is_refused() -> None:
    x = _values()
    with pytest.raises(DataError, match="example by example"):
        pool(x, torch.tensor([0, 0, 0, 2, 2, 2]), "mean")
    with pytest.raises(DataError, match="example by example"):
        pool(x, torch.tensor([0, 1, 0, 1, 2, 2]), "mean")
    with pytest.raises(DataError, match="no token"):
        pool(x[:0], EXAMPLE[:0], "mean")
