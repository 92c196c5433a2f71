"""Data with a known answer: activations made of atoms that a dictionary should find again.

    x = sum over active atoms of c_i A_i + offset

Atoms A_i are random unit directions, which of them are active and how strongly is drawn for every
token. Training a dictionary on it and asking which atoms came back (`recovery`) tells a right
implementation from a wrong one, which a falling loss does not.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError

__all__ = ["PlantedAtoms", "recovery"]


ATOM_STREAM = 1 << 40
"""Added to the seed of the atoms."""


@final
@dataclass(frozen=True, kw_only=True)
class PlantedAtoms:
    """A generator of sparse mixtures of known directions.

    >>> planted = PlantedAtoms(d=8, n_atoms=4, l0=1.0)
    >>> planted.sample(3, seed=0).shape, planted.atoms.shape
    (torch.Size([3, 8]), torch.Size([4, 8]))
    """

    d: int = 64
    """Width of the activations."""
    n_atoms: int = 128
    """How many directions there are."""
    l0: float = 5.0
    """Mean number of active atoms on a token."""
    exact: bool = False
    """Whether every token has exactly `l0` atoms; otherwise each atom is active by chance."""
    signed: bool = False
    """Whether coefficients have a random sign."""
    low: float = 0.5
    """Smallest size of a coefficient."""
    high: float = 1.5
    """Largest size of a coefficient."""
    offset: float = 2.0
    """Length of the constant vector added to every token."""
    seed: int = 0
    """Of the atoms and the offset."""

    def __post_init__(self) -> None:
        if not 0 < self.l0 <= self.n_atoms:
            raise ConfigError(
                f"PlantedAtoms(l0={self.l0}, n_atoms={self.n_atoms}): l0 must be in (0, n_atoms]."
            )

    @property
    def atoms(self) -> Float[Tensor, "atom d"]:
        """The true directions, each of length 1."""
        return self._constants()[0]

    def sample(self, n_tokens: int, seed: int) -> Float[Tensor, "token d"]:
        """Draw tokens; another seed gives others from the same atoms."""
        atoms, offset = self._constants()
        return self.coefficients(n_tokens, seed) @ atoms + offset

    def coefficients(self, n_tokens: int, seed: int) -> Float[Tensor, "token atom"]:
        """The true code of the tokens that `sample` gives for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        chance = torch.rand(n_tokens, self.n_atoms, generator=generator)
        if self.exact:
            border = chance.kthvalue(math.ceil(self.l0), dim=1, keepdim=True).values
            active = chance <= border
        else:
            active = chance < self.l0 / self.n_atoms
        size = torch.rand(n_tokens, self.n_atoms, generator=generator)
        size = self.low + (self.high - self.low) * size
        if self.signed:
            size *= torch.where(torch.rand(size.shape, generator=generator) < 0.5, -1.0, 1.0)
        return size * active

    def _constants(self) -> tuple[Tensor, Tensor]:
        # A dictionary of the same seed draws its directions from that stream of random numbers, and
        # would start as the atoms themselves.
        generator = torch.Generator().manual_seed(ATOM_STREAM + self.seed)
        atoms = torch.randn(self.n_atoms, self.d, generator=generator)
        offset = torch.randn(self.d, generator=generator)
        return (
            atoms / atoms.norm(dim=1, keepdim=True),
            offset * (self.offset / offset.norm()),
        )


def recovery(
    atoms: Float[Tensor, "atom d"],
    directions: Float[Tensor, "latent d"],
    *,
    signed: bool = False,
    bar: float = 0.9,
) -> float:
    """Share of atoms that some direction matches with a cosine above `bar`.

    Args:
        atoms: True unit directions.
        directions: Decoder directions, of any length.
        signed: Count a direction that points the other way too, as a signed latent does.
        bar: The cosine to exceed.

    >>> recovery(torch.eye(2), torch.tensor([[2.0, 0.1], [0.1, -1.0]]))
    0.5
    """
    cosines = atoms @ (directions / directions.norm(dim=1, keepdim=True)).T
    best = (cosines.abs() if signed else cosines).amax(1)
    return (best > bar).float().mean().item()
