"""How do dictionaries of any kind look to a circuit: what do their latents read, and write where?

A transcoder reads one place and writes another, an autoencoder writes where it reads, a latent of
a cross-layer transcoder writes to many places. All are seen as `LatentLayer`s, each of which reads
one hook point, and the places written, each a `Written` with a decoder bias and maybe a linear
skip path. Directions are in the units of the model: the dictionaries' scales are inside them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activation_functions import CODERS
from saelab.cross_layer import CrossLayerTranscoder
from saelab.errors import ConfigError, ShapeError
from saelab.hook_points import HookPoint
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.sparse_codes import SparseCodes

__all__ = [
    "Dictionaries",
    "LatentLayer",
    "LatentLayers",
    "Written",
    "affine_places",
    "latent_layers",
    "mlp_outputs",
]

Dictionaries = Mapping[str, SAE] | Sequence[SAE] | SAE | CrossLayerTranscoder
"""Dictionaries of several places, by any key or in any order; or one for all layers."""

_READ = ("resid_pre", "attn_in", "attn_z", "attn_out", "resid_mid", "mlp_in", "resid_post")
"""Kinds of hook points that are affine in the residual stream once the model is frozen."""
_REPLACED = ("resid_pre", "attn_in", "attn_z", "attn_out", "resid_mid", "resid_post")
"""Kinds at which an autoencoder can stand in: something affine reads them."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What a dictionary writes at one place besides its latents."""

    hook: str
    """Where, by canonical name."""
    layer: int
    """In which block."""
    bias: Float[Tensor, " d_out"]
    """b_dec, in the model's units."""
    reads: str
    """The place that the error there belongs to: what the dictionary reads."""
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    """Linear path from `reads`, in the model's units."""


class LatentLayer(ABC):
    """Latents that read one place and write to one or more."""

    hook: str
    """What they read, by canonical name."""
    layer: int
    """The block it is in."""
    d_sae: int
    """How many latents there are."""
    writes: tuple[str, ...]
    """Where they write, by canonical name."""

    @abstractmethod
    def encoder(
        self, latents: Int[Tensor, " latent"]
    ) -> tuple[Float[Tensor, "latent d_in"], Float[Tensor, " latent"]]:
        """Directions and offsets: pre-activation = direction . x + offset, x in model's units."""

    @abstractmethod
    def decoder(self, latents: Int[Tensor, " latent"], at: str) -> Float[Tensor, "latent d_out"]:
        """What one unit of each latent adds at a place it writes, in the model's units."""

    @property
    def name(self) -> str:
        """Where it reads and writes, for messages."""
        return self.hook if self.writes == (self.hook,) else f"{self.hook} -> {self.writes[-1]}"


@final
class _Single(LatentLayer):
    """The latents of an autoencoder or of a transcoder of one layer."""

    def __init__(self, sae: SAE, read: HookPoint, write: HookPoint) -> None:
        self.sae = sae
        self.hook, self.layer = read.name, _layer(read)
        self.d_sae, self.writes = sae.d_sae, (write.name,)

    def encoder(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            directions = self.sae.W_enc.T[latents]
            offsets = self.sae.b_enc[latents]
            if self.sae.pre_bias:
                offsets = offsets - directions @ self.sae.b_dec
            return directions * self.sae.normalization.scale_in, offsets

    def decoder(self, latents: Tensor, at: str) -> Tensor:  # noqa: ARG002 - it writes one place
        with torch.no_grad():
            return self.sae.W_dec[latents] / self.sae.normalization.scale_out


@final
class _OfCrossLayer(LatentLayer):
    """One layer's latents of a cross-layer transcoder."""

    def __init__(self, clt: CrossLayerTranscoder, n: int, points: Sequence[HookPoint]) -> None:
        self.clt, self.n = clt, n
        read, *written = points
        self.hook, self.layer = read.name, _layer(read)
        self.d_sae, self.writes = clt.d_sae, tuple(point.name for point in written)

    def encoder(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            directions = self.clt.W_enc[self.n].T[latents]
            return (
                directions * self.clt.normalizations[self.n].scale_in,
                self.clt.b_enc[self.n][latents],
            )

    def decoder(self, latents: Tensor, at: str) -> Tensor:
        target = self.n + self.writes.index(at)
        rows = self.clt.decoder(self.n, target)[latents]
        return rows / self.clt.normalizations[target].scale_out


@final
@dataclass(frozen=True, slots=True, eq=False)
class LatentLayers:
    """All dictionaries of a circuit, taken apart; first layer first."""

    layers: tuple[LatentLayer, ...]
    """Sets of latents, in the order the model reaches what they read."""
    written: tuple[Written, ...]
    """Places written, in the order the model reaches them."""
    source: tuple[SAE, ...] | CrossLayerTranscoder
    """The dictionaries, in the order of `layers`."""

    def encode(self, reads: Mapping[str, Float[Tensor, "pos _"]]) -> list[SparseCodes]:
        """Latents of every layer, after the activation function, from what is read."""
        inputs = [reads[layer.hook] for layer in self.layers]
        if isinstance(self.source, CrossLayerTranscoder):
            return self.source.encode(inputs)
        return [sae.encode(x) for sae, x in zip(self.source, inputs, strict=True)]


def latent_layers(model: LanguageModel, dictionaries: Dictionaries) -> LatentLayers:
    """Take dictionaries apart into latents and places written.

    Raises:
        ConfigError: There is none, one does not name its hook point, two write to one place, or
            one reads or writes where the frozen model is not affine.
        ShapeError: A dictionary is not as wide as what it reads or writes.
        HookPointError: The model has no such place.
        ModelError: A dictionary was trained on another model.
    """
    if isinstance(dictionaries, CrossLayerTranscoder):
        return _cross_layer(model, dictionaries)
    if isinstance(dictionaries, SAE):
        dictionaries = [dictionaries]
    named = isinstance(dictionaries, Mapping)
    saes = list(dictionaries.values() if named else dictionaries)  # type: ignore[union-attr]
    if not saes:
        raise ConfigError("No dictionary was given. Name at least one layer's transcoder.")
    found = sorted(
        (_single(model, sae) for sae in saes), key=lambda one: _order(model, one[0].hook)
    )
    places = [written.hook for _, written in found]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise ConfigError(f"Two dictionaries write to {twice[0]}. Give one per place.")
    return LatentLayers(
        tuple(layer for layer, _ in found),
        tuple(written for _, written in found),
        tuple(layer.sae for layer, _ in found),
    )


def _single(model: LanguageModel, sae: SAE) -> tuple[_Single, Written]:
    if sae.hook is None or (sae.hook_out is None and sae.is_transcoder):
        raise ConfigError(
            "A dictionary does not say which hook points it reads and writes. Build it with hook= "
            "and, for a transcoder, hook_out=."
        )
    require_same_model(sae, model.identity.to_json())
    if type(sae.activation).__name__ in {coder.__name__ for coder in CODERS.values()}:
        raise ConfigError(
            f"The latents of {sae.hook} come from {type(sae.activation).__name__}, which looks at "
            "all of them at once: there is no encoder direction that one latent reads."
        )
    read, write = model.hook_point(sae.hook), model.hook_point(sae.hook_out or sae.hook)
    _check_places(model, read, write, transcoder=sae.hook_out is not None)
    _check_width(read, sae.d_in, "reads")
    _check_width(write, sae.d_out, "writes")
    scales = sae.normalization
    bias = sae.b_dec.detach() / scales.scale_out
    W_skip = sae.W_skip
    if W_skip is not None:
        W_skip = W_skip.detach() * (scales.scale_in / scales.scale_out)
    return _Single(sae, read, write), Written(write.name, _layer(write), bias, read.name, W_skip)


def _cross_layer(model: LanguageModel, clt: CrossLayerTranscoder) -> LatentLayers:
    reads = [model.hook_point(hook) for hook in clt.hooks]
    writes = [model.hook_point(hook) for hook in clt.hooks_out]
    written = []
    for n, (read, write) in enumerate(zip(reads, writes, strict=True)):
        _check_places(model, read, write, transcoder=True)
        _check_width(read, clt.d_in, "reads")
        _check_width(write, clt.d_out, "writes")
        bias = clt.b_dec[n].detach() / clt.normalizations[n].scale_out
        written.append(Written(write.name, _layer(write), bias, read.name))
    layers = tuple(_OfCrossLayer(clt, n, [read, *writes[n:]]) for n, read in enumerate(reads))
    return LatentLayers(layers, tuple(written), clt)


def _check_places(
    model: LanguageModel, read: HookPoint, write: HookPoint, *, transcoder: bool
) -> None:
    if read.kind not in _READ or (not transcoder and read.kind not in _REPLACED):
        raise ConfigError(
            f"Latents that read {read.name} cannot be traced: with MLP outputs held constant, "
            f"{'it is constant or not affine' if read.kind not in _READ else 'nothing reads it'}. "
            "Use a transcoder (hook 'blocks.L.mlp.hook_in', hook_out 'blocks.L.hook_mlp_out') or "
            "an autoencoder of the residual stream or of attention."
        )
    if transcoder and write.name not in mlp_outputs(model, write.layer):
        raise ConfigError(
            f"A transcoder must write what an MLP writes, 'blocks.L.hook_mlp_out'; found "
            f"{write.name}."
        )


def affine_places(model: LanguageModel, hooks: Sequence[str]) -> list[str]:
    """Canonical names of hook points, once they are sure to be affine in the frozen model.

    Raises:
        ConfigError: One is not.
    """
    points = [model.hook_point(hook) for hook in hooks]
    for point in points:
        if point.kind not in _READ:
            raise ConfigError(
                f"{point.name} is no place to read from: with MLP outputs held constant it is "
                f"constant or not affine. Read one of the kinds {', '.join(_READ)}."
            )
    return [point.name for point in points]


def mlp_outputs(model: LanguageModel, layer: int | None) -> tuple[str, ...]:
    """Where a layer's MLP output can be cut: after a norm that follows it, and before."""
    if layer is None:
        return ()
    names = (f"blocks.{layer}.hook_mlp_out", f"blocks.{layer}.mlp.hook_out")
    return tuple(dict.fromkeys(model.hook_point(name).name for name in names))


def _check_width(point: HookPoint, width: int, verb: str) -> None:
    if point.width is not None and point.width != width:
        raise ShapeError(
            f"A dictionary {verb} vectors of width {width} at {point.name}, which is "
            f"{point.width} wide in this model. It belongs to another model or another place."
        )


def _layer(point: HookPoint) -> int:
    return 0 if point.layer is None else point.layer


def _order(model: LanguageModel, hook: str) -> int:
    return [point.name for point in model.hook_points()].index(hook)
