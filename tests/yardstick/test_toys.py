"""Two ways in which a dictionary of the right directions is not what training prefers."""

import math

import torch

from saelab.activation_functions import ReLU
from saelab.objectives import L1, Reconstruction
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig


def two_families(n=3000, d=32, values=16, sizes=(1.0, 1.0), seed=0):
    """x = u_i + v_j: a value of each of two attributes on every token."""
    generator = torch.Generator().manual_seed(seed)
    families = [
        size * torch.nn.functional.normalize(torch.randn(values, d, generator=generator), dim=1)
        for size in sizes
    ]
    owner = torch.randint(values, (2, n), generator=generator)
    x = families[0][owner[0]] + families[1][owner[1]]
    return x, owner


def found_values(sae, x, owner, values, f1):
    """How many values of each attribute have a latent whose firing has this F1 with them."""
    on = (sae.encode(x).dense() != 0).float()
    counts = []
    for own in owner:
        hot = torch.nn.functional.one_hot(own, values).float()
        score = 2 * (hot.T @ on) / (hot.sum(0)[:, None] + on.sum(0)).clamp_min(1)
        counts.append(int((score.max(1).values >= f1).sum()))
    return counts


def test_the_smaller_family_is_occluded_by_the_larger():
    """As likely, as independent, as many; only a little shorter, and the penalty lets it go."""
    x, owner = two_families(sizes=(1.25, 0.8))
    sae = SAE(32, 64, ReLU(), hook="toy", seed=1)
    config = TrainConfig(tokens=60_000, batch_size=256, lr=1e-2)
    terms = (Reconstruction(), L1(coefficient=1.0))
    train(sae, ActivationStore.from_tensor(x, hook="toy"), config, terms=terms)
    larger, smaller = found_values(sae, x, owner, 16, 0.9)
    assert larger >= smaller + 3
    loose = found_values(sae, x, owner, 16, 0.5)
    assert loose == [16, 16]  # at a low bar nothing is missing


def loss(x, recons, latents, lam):
    """|x - recons|^2 + lam |f|_1, per token; decoder directions have length 1."""
    return float((x - recons).square().sum(1).mean() + lam * latents.abs().sum(1).mean())


def best_scale(x, latents, directions, lam):
    """The loss of s * latents at the best s >= 0, which has a closed form."""
    written = latents @ directions
    a = float(written.square().sum(1).mean())
    b = float((written * x).sum(1).mean()) - lam * float(latents.sum(1).mean()) / 2
    s = max(0.0, b / a)
    return loss(x, s * written, s * latents, lam)


def test_a_binary_attribute_is_split_over_many_random_latents_where_the_price_is_low():
    """+-mu + noise in 100 dimensions: the two true directions lose to a thousand random ones, until
    a latent costs so much that noise is no longer worth its price."""
    generator = torch.Generator().manual_seed(0)
    d, n = 100, 4000
    mu = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    sign = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    x = 2 * sign[:, None] * mu + torch.randn(n, d, generator=generator)
    random = torch.nn.functional.normalize(torch.randn(1000, d, generator=generator), dim=1)
    many = (x @ random.T - 2.35).relu()

    def two(lam):
        pair = torch.stack([mu, -mu])
        grid = [(x @ pair.T - gamma).relu() for gamma in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)]
        return min(best_scale(x, latents, pair, lam) for latents in grid)

    def other(lam):
        return best_scale(x, many, random, lam)

    cheap, dear = 0.25, 8.0
    assert other(cheap) < two(cheap) - 1.0
    assert two(dear) <= other(dear) + 1e-6
    nothing = float(x.square().sum(1).mean())
    assert two(2.0) < nothing - 0.5 and math.isfinite(nothing)
