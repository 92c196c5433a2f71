"""Crosscoder: one set of latents for several sites, be they layers or models.

    f = activation(sum over sites s of (a^s scale_s) W_enc^s + b_enc)
    recons^s = (f W_dec^s + b_dec^s) / scale_s

It is a dictionary that reads its sites side by side, each brought to unit variance by a power of
two of its own, so that no site counts for more because its activations are longer. Everything that
trains or encodes a dictionary therefore works on one. What is particular is which columns belong
to which site, the penalty that adds norms over sites, and the question how a latent's decoder norm
is shared between them.

Source: Lindsey, Templeton, Marcus, Conerly, Batson and Olah 2024, "Sparse crosscoders for
cross-layer features and model diffing".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import ActivationFunction
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.metrics import ReconstructionMetrics
from saelab.normalization import fit_scale
from saelab.objectives import Step, Term
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore, joined
from saelab.training import TrainResult, train
from saelab.training.config import TrainConfig
from saelab.training.upkeep import Upkeep

__all__ = ["Crosscoder", "Site", "SiteNorms", "train_crosscoder"]

SAMPLE_TOKENS = 32_768
"""How many activations a site's scale is measured on."""


@final
@dataclass(frozen=True, kw_only=True)
class Site:
    """One place that a crosscoder reads and writes."""

    hook: str
    """Hook point, as the store calls it; of several models, "model:hook"."""
    width: int
    """Width of its activations."""
    scale: float
    """Multiplies what is read there; a power of two."""


@final
class Crosscoder:
    """A dictionary over several sites.

    Args:
        sae: Reads and writes the scaled sites side by side; its metadata tells them apart.

    Raises:
        ConfigError: The sites' widths do not add up to the dictionary's.

    >>> store = ActivationStore.from_tensor({"a": torch.randn(64, 4), "b": torch.randn(64, 2)})
    >>> crosscoder = Crosscoder.over(store, ["a", "b"], 8)
    >>> crosscoder.relative_norms().shape, crosscoder.sae.d_in
    (torch.Size([2, 8]), 6)
    """

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self.sites = tuple(Site(**site) for site in sae.metadata.get("sites", ()))
        if not self.sites or sum(site.width for site in self.sites) != sae.d_in:
            raise ConfigError(
                f"The dictionary reads width {sae.d_in} and its metadata names sites of widths "
                f"{[site.width for site in self.sites]}: it is not a crosscoder's. Make one with "
                "Crosscoder.over(store, hooks, d_sae)."
            )
        ends = [0, *accumulate(site.width for site in self.sites)]
        self.slices = {
            site.hook: slice(*ends) for site, ends in zip(self.sites, pairwise(ends), strict=True)
        }

    @classmethod
    def over(
        cls,
        store: ActivationStore,
        hooks: Sequence[str],
        d_sae: int,
        activation: ActivationFunction | None = None,
        *,
        start: Literal["same", "independent"] = "independent",
        seed: int = 0,
    ) -> "Crosscoder":
        """An untrained crosscoder whose scales are fitted to a store.

        Args:
            store: Holds all the sites, rows aligned.
            hooks: The sites, in order.
            d_sae: Number of latents.
            activation: From pre-activations to latents; TopK(32) if not given.
            start: Whether a latent starts with the same direction at every site, which needs sites
                of one width, or with directions of its own.
            seed: Of the directions.

        Raises:
            ConfigError: The store lacks a site, or `start` is "same" and widths differ.
        """
        sites = [_fitted(store, hook, seed) for hook in hooks]
        view = joined(store, hooks)
        sae = SAE(
            view.d_in,
            d_sae,
            activation,
            hook=view.hook,
            pre_bias=False,
            seed=seed,
            metadata={"sites": [asdict(site) for site in sites]},
        )
        crosscoder = cls(sae)
        if start == "same":
            crosscoder._start_alike()
        return crosscoder

    @torch.no_grad()
    def _start_alike(self) -> None:
        if len({site.width for site in self.sites}) > 1:
            raise ConfigError(
                'start="same" needs sites of one width; these have '
                f"{[site.width for site in self.sites]}."
            )
        first = self.sae.W_dec[:, self.slices[self.sites[0].hook]]
        unit = first / first.norm(dim=1, keepdim=True)
        self.sae.W_dec.copy_(unit.repeat(1, len(self.sites)) / len(self.sites) ** 0.5)
        self.sae.W_enc.copy_(self.sae.W_dec.T)

    def view(self, store: ActivationStore) -> ActivationStore:
        """A store as the dictionary reads it: the sites side by side, scaled."""
        hooks, scales = zip(*((site.hook, site.scale) for site in self.sites), strict=True)
        return joined(store, hooks, scales)

    def encode(self, activations: Mapping[str, Float[Tensor, "token _"]]) -> SparseCodes:
        """Latents of aligned activations, one matrix a site, in the model's units.

        Raises:
            ShapeError: A site is missing, or of another width.
        """
        for site in self.sites:
            x = activations.get(site.hook)
            if x is None or x.shape[-1] != site.width:
                found = "nothing" if x is None else f"width {x.shape[-1]}"
                raise ShapeError(
                    f"The crosscoder reads width {site.width} at {site.hook}; got {found}."
                )
        return self.sae.encode(
            torch.cat([activations[site.hook] * site.scale for site in self.sites], dim=-1)
        )

    def decode(self, codes: SparseCodes | Tensor) -> dict[str, Float[Tensor, "token _"]]:
        """The reconstruction of every site, in the model's units."""
        recons = self.sae.decode(codes)
        return {site.hook: recons[..., self.slices[site.hook]] / site.scale for site in self.sites}

    def decoder(self, hook: str) -> Float[Tensor, "d_sae width"]:
        """Decoder directions at one site, in normalized units."""
        if hook not in self.slices:
            raise ConfigError(f"The crosscoder has no site {hook}; it has {', '.join(self.slices)}")
        return self.sae.W_dec.detach()[:, self.slices[hook]]

    def norms(self) -> Float[Tensor, "site d_sae"]:
        """Length of each latent's direction at each site, in normalized units."""
        return torch.stack([self.decoder(site.hook).norm(dim=1) for site in self.sites])

    def relative_norms(self) -> Float[Tensor, "site d_sae"]:
        """Each site's share of the sum of a latent's norms, 0 to 1.

        With two sites, 1/2 is a shared latent, and 0 or 1 one that a single site has.
        """
        norms = self.norms()
        return norms / norms.sum(0).clamp_min(torch.finfo(norms.dtype).tiny)

    def cosines(self, one: str, other: str) -> Float[Tensor, " d_sae"]:
        """Cosine between each latent's directions at two sites, -1 to 1.

        Raises:
            ShapeError: The sites have different widths.
        """
        first, second = self.decoder(one), self.decoder(other)
        if first.shape != second.shape:
            raise ShapeError(
                f"{one} is {first.shape[1]} wide and {other} {second.shape[1]}: directions in "
                "different spaces have no cosine."
            )
        return torch.nn.functional.cosine_similarity(first, second, dim=1)

    def measure(
        self, store: ActivationStore, max_tokens: int = 200_000, chunk: int = 8192
    ) -> dict[str, ReconstructionMetrics]:
        """Reconstruction and sparsity at every site, on the first rows of a store."""
        found = {site.hook: ReconstructionMetrics() for site in self.sites}
        total = min(max_tokens, store.n_tokens)
        for start in range(0, total, chunk):
            rows = store.rows(start, min(start + chunk, total), list(found)).activations
            codes = self.encode(rows)
            for hook, recons in self.decode(codes).items():
                found[hook].update(rows[hook], recons, codes)
        return found

    def save(self, folder: str | Path) -> None:
        """Write it as the dictionary it is, sites included."""
        self.sae.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Crosscoder":
        """Read what `save` wrote, or the `sae` folder of a run.

        Raises:
            CheckpointError: There is no dictionary, or it is not a crosscoder's.
        """
        try:
            return cls(SAE.load(folder))
        except ConfigError as error:
            raise CheckpointError(f"{folder} holds no crosscoder: {error}") from None


@final
@dataclass(frozen=True)
class SiteNorms(Term):
    """Penalize the length that each latent contributes at every site.

        coefficient * mean over tokens of sum_i |f_i| sum_s |W_dec^s[i]|, over the variance

    The sum of norms lets a latent be exclusive to one site at no extra cost; `L1`, which takes the
    norm over all sites together, makes sharing cheaper and gives fewer exclusive latents.

    Source: Lindsey et al. 2024.
    """

    widths: tuple[int, ...]
    """Width of each site, in order."""
    coefficient: float = 5.0
    """Weight of the penalty."""
    warmup: float = 0.05
    """Share of the budget over which it rises from 0."""

    name = "site_norms"

    def __post_init__(self) -> None:
        if self.coefficient <= 0 or not self.widths:
            raise ConfigError(
                f"SiteNorms(widths={self.widths}, coefficient={self.coefficient}): name the sites' "
                "widths and a positive coefficient."
            )

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        parts = step.sae.W_dec.split(list(self.widths), dim=1)
        lengths = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts]).sum(0)
        pairs = step.forward.pairs
        total = (step.forward.latents.abs() * lengths[pairs.indices]).sum()
        weight = self.coefficient * min(1.0, step.progress / self.warmup if self.warmup else 1.0)
        return weight * total / (pairs.n_tokens * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "widths": list(self.widths),
            "coefficient": self.coefficient,
            "warmup": self.warmup,
        }


def train_crosscoder(
    crosscoder: Crosscoder,
    store: ActivationStore,
    config: TrainConfig | None = None,
    folder: str | Path | None = None,
    *,
    terms: Sequence[Term] | None = None,
    upkeep: Sequence[Upkeep] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> TrainResult:
    """Train a crosscoder on a store that holds its sites; see `train` for everything else."""
    return train(
        crosscoder.sae,
        crosscoder.view(store),
        config,
        folder,
        terms=terms,
        upkeep=upkeep,
        progress=progress,
    )


def _fitted(store: ActivationStore, hook: str, seed: int) -> Site:
    at = store.at(hook)
    sample = at.sample(min(SAMPLE_TOKENS, at.n_tokens), seed=seed)
    return Site(hook=hook, width=at.d_in, scale=fit_scale(sample))
