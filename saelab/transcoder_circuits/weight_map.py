"""What would one latent tell another on any prompt at all? Products of weights.

What latent i adds to latent j's pre-activation at the same token is a product of three:

    z_i  x  norm scale at j's place  x  W_dec[i] . (gain * W_enc[:, j])

The last is here: it does not depend on the prompt. Through head h of a layer between them, from one
position to another, it is W_dec[i] W_V^h W_O^h (gain * W_enc[:, j]) with the gains of both norms
in it, times the pattern and both scales. With the token embedding in place of W_dec[i] it is a
latent's de-embedding. None of these is an effect: they ignore which latents are ever active
together, so weigh them by how active a latent is.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), sections 3.2.1 and 3.2.4 and equation 8; gains are
theirs folded into the weights.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.circuits.dictionaries import Dictionaries, LatentLayer, latent_layers, mlp_outputs
from saelab.circuits.frozen import FrozenMap, ReadOuts
from saelab.circuits.replacement import LocalReplacement
from saelab.errors import ConfigError
from saelab.models import LanguageModel

__all__ = ["Head", "WeightMap"]


class Head(NamedTuple):
    """Through which head something is read."""

    layer: int
    """Its layer."""
    number: int
    """Which query head of it."""


@final
class WeightMap:
    """Connections of dictionaries by weights alone, in the model's units.

    Everything is read off the frozen map of one token, with each norm's scale divided out: what is
    left are weights and gains, whatever the model calls them.

    Args:
        model: A transformers model.
        dictionaries: Transcoders of any layers, and autoencoders of heads (`attn.hook_z`).

    Raises:
        ConfigError: A dictionary writes elsewhere, or cannot be traced.
        ModelError: The model cannot be held constant.
    """

    def __init__(self, model: LanguageModel, dictionaries: Dictionaries) -> None:
        token = torch.tensor([0 if model.bos_token_id is None else model.bos_token_id])
        self.layers: tuple[LatentLayer, ...] = latent_layers(model, dictionaries).layers
        """Sets of latents, in the order the model reaches what they read."""
        whole = LocalReplacement(model, dictionaries, token, cut_heads=True)
        self._z = [model.hook_point(f"blocks.{n}.attn.hook_z").name for n in range(model.n_layers)]
        _check_written(model, whole.written, self._z)
        self._start = model.hook_point("blocks.0.hook_resid_pre").name
        # A cut where block 0 starts parts the stream from the embedding, which a model may scale.
        self.map = FrozenMap(
            model, token, [*whole.map.cuts, self._start], [*whole.map.read_at, self._start]
        )
        self._scales = _scales(self.map)
        self._heads = self.map.held.patterns[0].shape[1]

    def connections(
        self,
        target: int,
        latents: Int[Tensor, " latent"],
        source: int,
        *,
        through: Head | None = None,
        activations: Float[Tensor, " d_source"] | None = None,
    ) -> Float[Tensor, "latent d_source"]:
        """What a unit of each latent of one layer adds to some latents of a later one.

        Args:
            target: Which of `layers` reads.
            latents: Which of its latents.
            source: Which of `layers` writes.
            through: A head that carries it; the same token if None.
            activations: Mean activation of each source latent, to weigh by; None for 1.

        Returns:
            Pre-activation per unit, for a norm scale (and a pattern) of 1.

        Raises:
            ConfigError: The source does not write before the target, or the head, reads.
        """
        layer = self._layer(source)
        slopes = self._slopes(self._layer(target), latents, through)
        every = torch.arange(layer.d_sae, device=latents.device)
        parts = [slopes[at] @ layer.decoder(every, at).to(slopes[at]).T
                 for at in layer.writes if at in slopes]  # fmt: skip
        if not parts:
            way = "" if through is None else f" through head {through.number} of {through.layer}"
            raise ConfigError(
                f"{layer.name} writes nothing that {self._layer(target).name} reads{way}. Name an "
                "earlier source."
            )
        found = torch.stack(parts).sum(0)
        return found if activations is None else found * activations.to(found)

    def de_embedding(
        self, target: int, latents: Int[Tensor, " latent"], *, through: Head | None = None
    ) -> Float[Tensor, "latent d_vocab"]:
        """What each token's embedding adds to some latents, for a norm scale of 1.

        Meaningful for early layers, or through one head: elsewhere little of the embedding is left.

        Args:
            target: Which of `layers` reads.
            latents: Which of its latents.
            through: A head that carries it; the same token if None.
        """
        slopes = self._slopes(self._layer(target), latents, through)
        stream = ReadOuts(
            self._start,
            torch.zeros(len(latents), dtype=torch.int64),
            slopes[self._start],
            slopes[self._start].new_zeros(len(latents)),
        )
        embedding = self.map.model.hook_point("hook_embed").name
        direction = self.map.slopes([stream])[embedding][:, 0]
        module: nn.Module = self.map.model.module.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            table = module(torch.arange(self.map.model.d_vocab, device=direction.device))
        return direction @ table.to(direction).T

    def _slopes(
        self, target: LatentLayer, latents: Int[Tensor, " latent"], through: Head | None
    ) -> dict[str, Float[Tensor, "latent d"]]:
        """By place written: directions whose product with what is written is what is added."""
        directions, _ = target.encoder(latents)
        reads_heads = target.hook in self._z
        found = {target.hook: directions} if reads_heads else self._pulled(target.hook, directions)
        if through is None and not reads_heads:
            return found
        layer, number = (None, None) if through is None else through
        heads = None if layer is None or layer not in range(len(self._z)) else self._z[layer]
        known = heads in found and number in range(self._heads)
        if through is None or heads is None or not known:
            raise ConfigError(
                f"{target.name} does not read head {number} of layer {layer}: there are "
                f"{self._heads} heads a layer, attention of a block comes before its MLP, and a "
                "dictionary of heads is read through one of its own."
            )
        own = found[heads].unflatten(1, (self._heads, -1))[:, through.number]
        out = self.map.model.hook_point(f"blocks.{through.layer}.hook_attn_out").name
        scale = 1.0 if reads_heads else self._scales.get(out, 1.0)
        return self._through_values(through, own / scale)

    def _through_values(
        self, head: Head, slopes: Float[Tensor, "latent d_head"]
    ) -> dict[str, Float[Tensor, "latent d"]]:
        values = f"blocks.{head.layer}.attn.v"
        n_values = self.map.reads[values].shape[1] // slopes.shape[1]
        slot = head.number * n_values // self._heads
        whole = slopes.new_zeros(len(slopes), n_values, slopes.shape[1])
        whole[:, slot] = slopes
        reads = self.map.model.hook_point(f"blocks.{head.layer}.attn.hook_in").name
        return self._pulled(values, whole.flatten(1), self._scales.get(reads, 1.0))

    def _pulled(
        self, hook: str, directions: Tensor, scale: float | None = None
    ) -> dict[str, Float[Tensor, "latent d"]]:
        zeros = torch.zeros(len(directions), dtype=torch.int64)
        x = self.map.reads[hook]
        readout = ReadOuts(hook, zeros, directions.to(x), x.new_zeros(len(directions)))
        scale = self._scales.get(hook, 1.0) if scale is None else scale
        found = self.map.slopes([readout])
        return {at: slope[:, 0] / scale for at, slope in found.items()}

    def _layer(self, number: int) -> LatentLayer:
        if not 0 <= number < len(self.layers):
            names = [layer.name for layer in self.layers]
            raise ConfigError(
                f"There is no dictionary {number}; they are {list(enumerate(names))}."
            )
        return self.layers[number]


def _check_written(model: LanguageModel, written: Iterable[str], heads: Sequence[str]) -> None:
    outputs = {name for n in range(model.n_layers) for name in mlp_outputs(model, n)}
    others = sorted(set(written) - outputs - set(heads))
    if others:
        raise ConfigError(
            f"A dictionary writes {others[0]}; connections by weights are between transcoders, "
            "which write what an MLP writes, and dictionaries of attn.hook_z."
        )


def _scales(map_: FrozenMap) -> dict[str, float]:
    """By place: the scale of the norm that gave what is there, for places that a norm gives."""
    model, held = map_.model, map_.held
    norms = {
        f"{path}.output": module
        for path, module in model.module.named_modules()
        if module in held.scales and held.scales[module].dim() == 3
    }
    places = [
        model.hook_point(f"blocks.{n}.{place}").name
        for n in range(model.n_layers)
        for place in ("attn.hook_in", "mlp.hook_in", "hook_attn_out")
    ]
    found = model.activations(map_.tokens[None], [*norms, *places])
    return {
        place: float(held.scales[module].flatten()[0])
        for place in places
        for name, module in norms.items()
        if found[name].shape == found[place].shape and torch.equal(found[name], found[place])
    }
