"""What adds directly to a latent or a logit: which head, from which position, and what else?

With attention patterns A and norm scales held constant, a read-out at position t is a sum over what
was written at t, and of what each head h of each layer brings there from each position s:

    r = sum over layers, h, s of A[h, t, s] (g_h . (v_h[s] - b_V))   heads (DFA)
      + sum over layers, h of (sum over s of A[h, t, s]) (g_h . b_V)  value biases
      + latents, errors, decoder biases, token and position of t
      + the model's other biases + the read-out's own offset

g_h is the slope of r by head h's output before W_O. For a latent of a dictionary of `attn.hook_z`
it is the encoder direction itself, and heads, value biases and b_enc - b_dec W_enc are all of it.
Values of shared keys count once for each query head that uses them. The pattern is held: this says
what was moved, never why a head looked there (`saelab.circuits.attention_score` does).

Source: direct feature attribution of Kissane et al. 2024 (arXiv 2406.17759); He et al. 2024 (arXiv
2402.12201) for the full sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits import LocalReplacement, ReadOuts
from saelab.circuits.freezing import Held, freezing
from saelab.errors import ConfigError
from saelab.models.torch_model import TorchModel

__all__ = ["DirectAttribution", "DirectTerms", "Source", "value_biases"]


class Source(NamedTuple):
    """One thing that adds directly to a read-out."""

    kind: str
    """head, value_bias, latent, error, token, position, decoder_bias, model_bias or offset."""
    layer: int | None = None
    """Of a head, latent, error or decoder bias."""
    position: int | None = None
    """Where it was read from (a head) or written; None for biases."""
    number: int | None = None
    """Which head, which latent of its dictionary, which token."""
    hook: str | None = None
    """What a latent reads; where an error or a decoder bias is written."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class DirectTerms:
    """What adds directly to some read-outs, in their units, signed."""

    heads: Float[Tensor, "readout layer head source"]
    """By head and the position it reads from, without the value bias."""
    value_biases: Float[Tensor, "readout layer head"]
    """What b_V adds through each head."""
    latents: Float[Tensor, "readout latent"]
    """By active latent, in the order of `LocalReplacement.latents`."""
    errors: Float[Tensor, "readout place"]
    """By place written, of `DirectAttribution.places`."""
    tokens: Float[Tensor, " readout"]
    """The embedding of the read-out's own token."""
    positions: Float[Tensor, " readout"]
    """Its learned position; zero with rotary positions."""
    decoder_biases: Float[Tensor, "readout place"]
    """By place written."""
    model_biases: Float[Tensor, " readout"]
    """b_O and the biases of norms and of whatever else is linear."""
    offsets: Float[Tensor, " readout"]
    """The read-out's own, of a latent b_enc - b_dec W_enc."""
    head_slopes: Float[Tensor, "readout layer head d_head"]
    """g_h: slope of the read-out by each head's output; no term."""

    def table(self) -> Float[Tensor, "readout term"]:
        """All of it side by side, in the order of `DirectAttribution.sources`."""
        single = [self.tokens, self.positions, self.model_biases, self.offsets]
        parts = [self.heads, self.value_biases, self.latents, self.errors, self.decoder_biases]
        return torch.cat([*(part.flatten(1) for part in parts), torch.stack(single, dim=1)], dim=1)

    def sums(self) -> Float[Tensor, " readout"]:
        """Everything together, in float64: the value of each read-out."""
        return self.table().double().sum(1)

    def by_source(self) -> Float[Tensor, "readout source"]:
        """What came from each position through any head: direct feature attribution."""
        return self.heads.sum((1, 2))

    def by_head(self) -> Float[Tensor, "readout layer head"]:
        """What each head brought from all positions together, value bias left out."""
        return self.heads.sum(3)


@final
class DirectAttribution:
    """Takes read-outs of one prompt apart into what reaches them directly.

    Args:
        replacement: The prompt, built with `cut_heads=True`; its dictionaries may be of MLPs, of
            attention and of the residual stream. A layer whose heads a dictionary of `hook_z`
            replaces adds through that dictionary's latents, and its latents through heads.

    Raises:
        ConfigError: The heads are not cut.
    """

    def __init__(self, replacement: LocalReplacement) -> None:
        if not replacement.cut_heads:
            raise ConfigError(
                "The replacement's heads are not inputs of its map, so what they add cannot be "
                "told apart. Build it with LocalReplacement(..., cut_heads=True)."
            )
        self.replacement = replacement
        model = replacement.map.model
        hooks = [model.hook_point(f"blocks.{n}.attn.hook_z").name for n in range(model.n_layers)]
        self.layer_of: Mapping[str, int] = {hook: n for n, hook in enumerate(hooks)}
        """The layer of each place where heads lie side by side, before W_O."""
        self.places = tuple(
            cut
            for cut in replacement.cuts
            if cut not in self.layer_of or cut in replacement.written
        )
        """Where something is written: columns of errors and decoder biases."""
        self._value_biases = value_biases(model, replacement.tokens)
        held, reads = replacement.map.held, replacement.map.reads
        self._patterns = [held.patterns[n][0] for n in range(len(hooks))]
        self._values = [
            reads[f"blocks.{n}.attn.v"].unflatten(1, self._value_biases[n].shape)
            for n in range(len(hooks))
        ]

    def terms(self, readouts: Sequence[ReadOuts]) -> DirectTerms:
        """Take read-outs apart; two backward passes for all of them.

        Args:
            readouts: Of latents (`LocalReplacement.readouts`), of logits, of queries, keys or
                values, or of `head_value`.
        """
        inner = [some for some in readouts if some.hook in self.layer_of]
        outer = [some for some in readouts if some.hook not in self.layer_of]
        # Rows of the read-outs that read the stream come first, and are put in order at the end.
        rows = _rows(readouts, inner)
        n, n_inner = len(rows), sum(map(len, inner))
        slopes = self._slopes(outer, n - n_inner, inner)
        positions = torch.cat([some.positions for some in (*outer, *inner)])
        heads, biases = self._of_heads(slopes, positions)
        some = self._of_stream(outer)
        padded = {
            name: torch.cat([part, part.new_zeros(n_inner, *part.shape[1:])])[rows]
            for name, part in some.items()
        }
        offsets = torch.cat([some.offsets for some in (*outer, *inner)]).to(heads)
        return DirectTerms(
            heads=heads[rows],
            value_biases=biases[rows],
            offsets=offsets[rows],
            head_slopes=slopes[rows],
            **padded,
        )

    def sources(self, position: int) -> tuple[Source, ...]:
        """What the columns of `DirectTerms.table` are, for a read-out at a position."""
        replacement = self.replacement
        latents, layers = replacement.latents, replacement.dictionaries.layers
        active = zip(*(x.tolist() for x in latents.places()), strict=True)
        n_heads, n_pos = self._patterns[0].shape[0], len(replacement.tokens)
        all_heads = [(layer, head) for layer in self.layer_of.values() for head in range(n_heads)]
        of_places = [(self._layer(place), place) for place in self.places]
        return (
            *(Source("head", n, at, head) for n, head in all_heads for at in range(n_pos)),
            *(Source("value_bias", n, None, head) for n, head in all_heads),
            *(Source("latent", layers[s].layer, at, i, layers[s].hook) for s, at, i in active),
            *(Source("error", n, position, None, place) for n, place in of_places),
            *(Source("decoder_bias", n, None, None, place) for n, place in of_places),
            Source("token", None, position, int(replacement.tokens[position])),
            Source("position", None, position),
            Source("model_bias"),
            Source("offset"),
        )

    def head_value(
        self,
        layer: int,
        head: int,
        query: int,
        source: int,
        slope: Float[Tensor, " d_head"],
        factor: float = 1.0,
    ) -> ReadOuts:
        """What a head brought from one position, as a read-out of the values there.

        Its value is the entry of `DirectTerms.heads`, so that taking it apart goes on upstream.

        Args:
            layer: Of the head.
            head: Which.
            query: Where it was brought to.
            source: Where it was read.
            slope: g_h, of `DirectTerms.head_slopes`.
            factor: Multiplies all of it.
        """
        biases = self._value_biases[layer]
        direction = slope * (factor * self._patterns[layer][head, query, source])
        slot = head * len(biases) // self._patterns[layer].shape[0]
        whole = direction.new_zeros(1, *biases.shape)
        whole[0, slot] = direction
        return ReadOuts(
            f"blocks.{layer}.attn.v",
            torch.tensor([source], device=direction.device),
            whole.flatten(1),
            -(direction @ biases[slot].to(direction))[None],
        )

    def _slopes(
        self, outer: Sequence[ReadOuts], n_outer: int, inner: Sequence[ReadOuts]
    ) -> Float[Tensor, "readout layer head d_head"]:
        found = self.replacement.map.slopes(outer) if outer else {}
        positions = torch.cat([some.positions for some in outer]) if outer else None
        z_width = self._patterns[0].shape[0] * self._value_biases[0].shape[1]
        n = n_outer + sum(map(len, inner))
        slopes = self.replacement.map.logits.new_zeros(n, len(self.layer_of), z_width)
        for hook, layer in self.layer_of.items():
            # Heads that a dictionary replaces add through its latents.
            if hook in found and hook not in self.replacement.written:
                slopes[:n_outer, layer] = found[hook][torch.arange(n_outer), positions]
        first = n_outer
        for some in inner:
            slopes[first : first + len(some), self.layer_of[some.hook]] = some.directions.to(slopes)
            first += len(some)
        return slopes.unflatten(2, (self._patterns[0].shape[0], -1))

    def _of_heads(
        self, slopes: Float[Tensor, "readout layer head d_head"], positions: Tensor
    ) -> tuple[Float[Tensor, "readout layer head source"], Float[Tensor, "readout layer head"]]:
        heads, biases = [], []
        for layer, (pattern, values) in enumerate(zip(self._patterns, self._values, strict=True)):
            b_V = self._value_biases[layer].to(values)
            shared = pattern.shape[0] // len(b_V)
            attended = pattern[:, positions].transpose(0, 1).to(values)
            per_head = (values - b_V).repeat_interleave(shared, dim=1)
            read = torch.einsum("rhd,shd->rhs", slopes[:, layer], per_head)
            heads.append(attended * read)
            through = torch.einsum(
                "rhd,hd->rh", slopes[:, layer], b_V.repeat_interleave(shared, dim=0)
            )
            biases.append(attended.sum(2) * through)
        return torch.stack(heads, dim=1), torch.stack(biases, dim=1)

    def _of_stream(self, outer: Sequence[ReadOuts]) -> dict[str, Tensor]:
        replacement = self.replacement
        kept = torch.tensor([replacement.cuts.index(place) for place in self.places])
        if not outer:
            none = replacement.map.logits.new_zeros(0)
            wide = none.reshape(0, len(kept))
            return {
                "latents": none.reshape(0, len(replacement.latents)),
                "errors": wide, "decoder_biases": wide,
                "tokens": none, "positions": none, "model_biases": none,
            }  # fmt: skip
        found = replacement.decompose(outer)
        offsets = torch.cat([some.offsets for some in outer]).to(found.bias)
        return {
            "latents": found.latents,
            "errors": found.errors[:, kept].sum(2),
            "decoder_biases": found.decoder_biases[:, kept],
            "tokens": found.tokens.sum(1),
            "positions": found.positions.sum(1),
            "model_biases": found.bias - offsets,
        }

    def _layer(self, place: str) -> int:
        layer = self.replacement.model.hook_point(place).layer
        return 0 if layer is None else layer


def _rows(readouts: Sequence[ReadOuts], inner: Sequence[ReadOuts]) -> Tensor:
    """Where each read-out is once those that read heads are behind all others."""
    of_inner = torch.cat(
        [torch.full((len(some),), any(some is one for one in inner)) for some in readouts]
    )
    place = torch.empty(len(of_inner), dtype=torch.int64)
    order = of_inner.long().argsort(stable=True)
    place[order] = torch.arange(len(order))
    return place


def value_biases(
    model: TorchModel, tokens: Int[Tensor, " pos"]
) -> list[Float[Tensor, "key_head d_head"]]:
    """b_V by layer: the values of attention that reads zeros, whatever its weights are called.

    Args:
        model: A transformers model.
        tokens: Any; one pass of the first.
    """
    held = Held()
    edits = {f"blocks.{n}.attn.hook_in": torch.zeros_like for n in range(model.n_layers)}
    with torch.no_grad(), freezing(model.module, held, norms=False), model.editing(edits):
        model.whole_pass(tokens[None, :1])
    return [held.values[n][0, :, 0] for n in range(model.n_layers)]
