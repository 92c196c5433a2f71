"""Where do codes start? At the centers of the data, by k-means on its directions."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import Codes
from saelab.errors import DataError
from saelab.normalization import Normalization
from saelab.sae import SAE
from saelab.steering.forcing import codes_of

__all__ = ["codebook_for", "spherical_k_means", "start_codes"]

CHUNK = 4096
"""Rows compared with all centers at once."""


def codebook_for(
    x: Float[Tensor, "token d"],
    n_codes: int,
    k: int = 1,
    *,
    hook: str | None = None,
    reduce: str = "mean",
    iterations: int = 10,
    seed: int = 0,
) -> SAE:
    """A codebook that starts at the centers of some activations.

    Args:
        x: Activations, in the model's units.
        n_codes: Codes.
        k: Codes per token.
        hook: Where they were read.
        reduce: "mean" or "sum" of the codes that are on.
        iterations: Of k-means.
        seed: Of the draw of the first centers.

    Raises:
        DataError: There are fewer different rows than two.
    """
    codebook = SAE(x.shape[1], n_codes, Codes(k, reduce), hook=hook, tied=True, seed=seed)
    start_codes(codebook, x, iterations=iterations)
    return codebook


@torch.no_grad()
def start_codes(codebook: SAE, x: Float[Tensor, "token d"], *, iterations: int = 10) -> None:
    """Fit scale and b_dec of an untrained codebook to data, and put its codes at centers.

    Centers are those of `spherical_k_means` on the rows' directions from their mean; each code is
    the mean of its center's rows, so for k = 1 no other code would reconstruct them better. Where k
    codes are summed, each starts at a k-th of that.

    Raises:
        ConfigError: The dictionary is no codebook.
        DataError: All rows are the same, or there is none.
    """
    rule = codes_of(codebook)
    if len(x) < 2 or not bool((x != x[:1]).any()):
        raise DataError("Codes cannot start from activations that are all the same.")
    codebook.normalization = Normalization.fit(x, None)
    rows = (x.to(codebook.device) * codebook.normalization.scale_in).to(codebook.dtype)
    center = rows.mean(0)
    codes = spherical_k_means(rows - center, codebook.d_sae, iterations, codebook.seed)
    codebook.b_dec.copy_(center)
    codebook.W_dec.copy_(codes if rule.reduce == "mean" else codes / rule.k)
    codebook.W_enc.copy_(codebook.W_dec.T)


@torch.no_grad()
def spherical_k_means(
    rows: Float[Tensor, "row d"], n: int, iterations: int = 10, seed: int = 0
) -> Float[Tensor, "n d"]:
    """Means of the rows whose directions are nearest to one of n centers.

    First centers are rows drawn with chance proportional to the squared distance from those drawn
    before (k-means++), of the directions; a center that loses all its rows moves to the row that is
    worst off. With fewer different rows than centers, the rest are rows again.

    Args:
        rows: Activations from their mean.
        n: Centers.
        iterations: Rounds of assigning rows and moving centers.
        seed: Of the draws.

    >>> spherical_k_means(torch.tensor([[2.0, 0], [4, 0], [0, -1]]), 2).sort(dim=0).values.tolist()
    [[0.0, -1.0], [3.0, 0.0]]
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(rows.float(), dim=1)
    centers = _first_centers(directions, n, generator)
    owner, best = _assigned(directions, centers)
    for _ in range(iterations):
        centers = torch.nn.functional.normalize(_sums(directions, owner, n), dim=1)
        empty = (torch.bincount(owner, minlength=n) == 0).nonzero().flatten()
        worst = best.argsort()[: len(empty)]
        centers[empty[: len(worst)]] = directions[worst]
        owner, best = _assigned(directions, centers)
    counts = torch.bincount(owner, minlength=n)
    means = _sums(rows.float(), owner, n) / counts.clamp_min(1)[:, None]
    unused = (counts == 0).nonzero().flatten()
    drawn = torch.randint(len(rows), (len(unused),), generator=generator)
    means[unused] = rows.float()[drawn.to(rows.device)]
    return means


def _first_centers(directions: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """k-means++ for the first few hundred, and rows at random for the rest: each costs a pass."""
    places = [int(torch.randint(len(directions), (1,), generator=generator))]
    far = 1 - directions @ directions[places[0]]
    while len(places) < min(n, 256):
        chance = far.clamp_min(0).double().cpu()
        if float(chance.sum()) < 1e-6:
            break
        places.append(int(torch.multinomial(chance, 1, generator=generator)))
        far = torch.minimum(far, 1 - directions @ directions[places[-1]])
    rest = torch.randint(len(directions), (n - len(places),), generator=generator).tolist()
    return directions[[*places, *rest]].clone()


def _assigned(directions: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each row, and its cosine."""
    found = [(part @ centers.T).max(dim=1) for part in directions.split(CHUNK)]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def _sums(rows: Tensor, owner: Tensor, n: int) -> Tensor:
    return torch.zeros(n, rows.shape[1], device=rows.device).index_add_(0, owner, rows)
