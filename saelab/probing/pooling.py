"""How do the tokens of an example become one row? Every way is named; none is a default.

    last       the last token that counts
    mean       the mean over tokens; a signed latent's positive and negative tokens cancel in it
    max        the largest value; latents that are silent on a token count as 0 there
    mean_size  the mean of |value|
    peak       the value whose |value| is largest, with its sign

`mean_size` and `peak` treat both tails of a signed latent alike. To keep the tails apart in `mean`
or `max`, pool `two_halves(codes)`: latent i is its positive tail, d_sae + i its negative one.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["Pooling", "pool", "pool_codes", "two_halves"]

Pooling = Literal["last", "mean", "max", "mean_size", "peak"]


def pool(
    x: Float[Tensor, "token d"], example: Int[Tensor, " token"], how: Pooling
) -> Float[Tensor, "example d"]:
    """One row an example, from the tokens that count.

    Args:
        x: Activations.
        example: Which example each token belongs to: 0, 1, ... in order, none left out.
        how: See the module's first lines.

    Raises:
        DataError: An example has no token, or tokens are out of order.

    >>> pool(torch.tensor([[1.0], [-3.0], [5.0]]), torch.tensor([0, 0, 1]), "peak").tolist()
    [[-3.0], [5.0]]
    """
    sizes = _sizes(example, len(x), how)
    n = len(sizes)
    if how == "last":
        return x[sizes.cumsum(0) - 1]
    if how in ("mean", "mean_size"):
        total = x.new_zeros(n, x.shape[1])
        total.index_add_(0, example.to(x.device), x.abs() if how == "mean_size" else x)
        return total / sizes[:, None].to(x)
    return torch.stack([_largest(part, how) for part in x.split(sizes.tolist())])


def pool_codes(codes: SparseCodes, example: Int[Tensor, " token"], how: Pooling) -> SparseCodes:
    """As `pool`, for latents, and still sparse: a row for each example.

    Raises:
        DataError: An example has no token, or tokens are out of order.

    >>> codes = SparseCodes.from_dense(torch.tensor([[-1.0, 0.0], [-3.0, 2.0]]))
    >>> pool_codes(codes, torch.tensor([0, 0]), "max").dense().tolist()  # latent 0 is never silent
    [[-1.0, 2.0]]
    """
    sizes = _sizes(example, codes.n_tokens, how)
    tokens, width = codes.tokens.long(), codes.d_sae
    if how == "last":
        kept = torch.zeros(codes.n_tokens, dtype=torch.bool, device=tokens.device)
        kept[sizes.cumsum(0) - 1] = True
        chosen = kept[tokens]
        row = example.long()[tokens[chosen]]
        return SparseCodes.from_pairs(
            row, codes.indices[chosen].long(), codes.values[chosen], len(sizes), width
        )
    place, inverse, counts = torch.unique(
        example.long()[tokens] * width + codes.indices.long(),
        return_inverse=True,
        return_counts=True,
    )
    row = place // width
    values = _joined(codes.values.float(), inverse, counts, sizes[row], how)
    return SparseCodes.from_pairs(row, place % width, values, len(sizes), width)


def two_halves(codes: SparseCodes) -> SparseCodes:
    """Signed latents as twice as many that are never negative: the positive, then the negated tail.

    Codes without a negative value gain d_sae latents that never fire.

    >>> two_halves(SparseCodes.from_dense(torch.tensor([[-1.0, 2.0]]))).dense().tolist()
    [[0.0, 2.0, 1.0, 0.0]]
    """
    shift = (codes.values < 0).to(codes.indices.dtype) * codes.d_sae
    return SparseCodes.from_pairs(
        codes.tokens,
        codes.indices + shift,
        codes.values.abs(),
        codes.n_tokens,
        2 * codes.d_sae,
    )


def _joined(values: Tensor, inverse: Tensor, counts: Tensor, sizes: Tensor, how: str) -> Tensor:
    if how in ("mean", "mean_size"):
        total = values.new_zeros(len(counts))
        total.index_add_(0, inverse, values.abs() if how == "mean_size" else values)
        return total / sizes.to(total)
    rule = "amax"
    most = values.new_zeros(len(counts))
    # A latent with no pair on some token of the example is 0 there, and so is the start above.
    most.scatter_reduce_(0, inverse, values, rule, include_self=False)
    if how == "max":
        return torch.where(counts < sizes.to(counts), most.clamp_min(0), most)
    least = values.new_zeros(len(counts))
    least.scatter_reduce_(0, inverse, values, "amin", include_self=False)
    return torch.where(most >= -least, most, least)


def _largest(part: Float[Tensor, "token d"], how: str) -> Float[Tensor, " d"]:
    most, least = part.amax(0), part.amin(0)
    return most if how == "max" else torch.where(most >= -least, most, least)


def _sizes(example: Tensor, n_tokens: int, how: str) -> Int[Tensor, " example"]:
    if how not in get_args(Pooling):
        raise ConfigError(f"There is no pooling '{how}'. Known: {', '.join(get_args(Pooling))}.")
    if example.shape != (n_tokens,):
        raise ShapeError(f"example must be [{n_tokens}], one a token; found {list(example.shape)}.")
    if n_tokens == 0:
        raise DataError("There is no token to pool.")
    steps = example.diff()
    if bool((steps < 0).any()) or bool((steps > 1).any()) or int(example[0]) != 0:
        raise DataError(
            "Tokens must come example by example, 0, 1, 2, ...; an example without a token that "
            "counts has nothing to pool. Leave such examples out, with their labels."
        )
    return torch.bincount(example)
