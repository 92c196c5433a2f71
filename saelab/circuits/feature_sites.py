"""Where do sparse feature circuits live, and what are a prompt's features and errors there?

    x = sum over latents i of f_i W_dec[i] + b_dec (+ skip path) + error

at every place that a dictionary writes. Latents and the error, one a position, are the nodes.

Source: Marks et al. 2025, "Sparse feature circuits" (arXiv 2403.19647), section 3.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model

__all__ = ["FeatureNode", "FeatureSite", "SiteState", "check_pairs", "feature_sites", "states"]


class FeatureNode(NamedTuple):
    """A latent, or the error, of one dictionary."""

    hook: str
    """Where it is written, by canonical name."""
    position: int | None
    """Where in the prompt; None for all positions together."""
    latent: int | None
    """Which; None for the error."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class FeatureSite:
    """One dictionary in the running model."""

    sae: SAE
    """An autoencoder or a transcoder."""
    reads: str
    """What it reads, by canonical name."""
    hook: str
    """What it writes, by canonical name."""

    def decoder(self, latents: Int[Tensor, " latent"]) -> Float[Tensor, "latent d_out"]:
        """What one unit of each latent adds, in the model's units."""
        return self.sae.W_dec.detach()[latents] / self.sae.normalization.scale_out

    def encoder(self, latents: Int[Tensor, " latent"]) -> Float[Tensor, "latent d_in"]:
        """What each pre-activation reads, in the model's units."""
        return self.sae.W_enc.detach().T[latents] * self.sae.normalization.scale_in

    @property
    def W_skip(self) -> Float[Tensor, "d_in d_out"] | None:
        """The linear path past the latents, in the model's units; None if there is none."""
        scales, W_skip = self.sae.normalization, self.sae.W_skip
        return None if W_skip is None else W_skip.detach() * (scales.scale_in / scales.scale_out)

    def skipped(self, x_read: Float[Tensor, "row pos d_in"]) -> Float[Tensor, "row pos d_out"]:
        """What the skip path writes; zeros if there is none."""
        if self.W_skip is None:
            return x_read.new_zeros(*x_read.shape[:2], self.sae.d_out)
        return x_read @ self.W_skip.to(x_read)

    def bias(self, x_read: Float[Tensor, "row pos d_in"]) -> Float[Tensor, "row pos d_out"]:
        """What is written without any latent: b_dec and the skip path."""
        b_dec = self.sae.b_dec.detach() / self.sae.normalization.scale_out
        return self.skipped(x_read) + b_dec.to(x_read)

    @torch.no_grad()
    def state(
        self, x_read: Float[Tensor, "row pos d_in"], x: Float[Tensor, "row pos d_out"]
    ) -> "SiteState":
        """Latents and errors of some rows."""
        latents = self.sae.encode(x_read).dense().to(x).unflatten(0, x.shape[:2])
        base = self.bias(x_read)
        error = x - base - latents @ self.decoder(torch.arange(self.sae.d_sae)).to(x)
        return SiteState(latents, error, base)


@final
@dataclass(frozen=True, slots=True, eq=False)
class SiteState:
    """What a dictionary makes of some rows: x = latents W_dec + base + error."""

    latents: Float[Tensor, "row pos d_sae"]
    """f, densely: for a few rows at a time."""
    error: Float[Tensor, "row pos d_out"]
    """What the dictionary misses."""
    base: Float[Tensor, "row pos d_out"]
    """Decoder bias and skip path."""

    def ablated(self) -> "SiteState":
        """The same with every latent and error at zero."""
        return SiteState(torch.zeros_like(self.latents), torch.zeros_like(self.error), self.base)


def feature_sites(
    model: LanguageModel, dictionaries: Mapping[str, SAE] | Sequence[SAE]
) -> tuple[FeatureSite, ...]:
    """The dictionaries, in the order in which the model runs what they write.

    Raises:
        ConfigError: There is none, one names no hook point, or two write to one place.
        HookPointError: The model has no such place.
        ModelError: A dictionary was trained on another model.
    """
    named = isinstance(dictionaries, Mapping)
    saes = list(dictionaries.values() if named else dictionaries)  # type: ignore[union-attr]
    if not saes:
        raise ConfigError("No dictionary was given. Name at least one.")
    found = []
    for sae in saes:
        if sae.hook is None:
            raise ConfigError("A dictionary does not say which hook point it reads: give hook=.")
        require_same_model(sae, model.identity.to_json())
        reads, hook = model.hook_point(sae.hook), model.hook_point(sae.hook_out or sae.hook)
        found.append(FeatureSite(sae, reads.name, hook.name))
    hooks = [site.hook for site in found]
    if len(set(hooks)) < len(hooks):
        twice = next(hook for hook in hooks if hooks.count(hook) > 1)
        raise ConfigError(f"Two dictionaries write to {twice}. Give one per place.")
    places = {point.name: n for n, point in enumerate(model.hook_points())}
    if all(hook in places for hook in hooks):
        found.sort(key=lambda site: places[site.hook])
    return tuple(found)


def states(
    model: LanguageModel, sites: Sequence[FeatureSite], tokens: Int[Tensor, "row pos"]
) -> list[SiteState]:
    """Latents and errors at every site, in one pass."""
    hooks = sorted({hook for site in sites for hook in (site.reads, site.hook)})
    with torch.no_grad():
        x = model.activations(tokens, hooks)
    return [site.state(x[site.reads], x[site.hook]) for site in sites]


def check_pairs(clean: Tensor, patch: Tensor | None) -> None:
    """Refuse pairs whose tokens do not line up.

    Raises:
        ShapeError: They differ in shape.
    """
    if clean.dim() != 2 or (patch is not None and patch.shape != clean.shape):
        raise ShapeError(
            f"Clean tokens of shape {list(clean.shape)} and patch tokens of shape "
            f"{None if patch is None else list(patch.shape)}: give token ids [row, pos], pair by "
            "pair of the same length."
        )
