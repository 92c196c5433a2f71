"""What is one prompt made of, in the terms of a set of dictionaries? The local replacement model.

Every vector that enters the residual stream of the frozen map is taken apart:

    embedding        one term a position
    learned position one term a position, where the model has them
    MLP output       sum of latents z_i W_dec[i], plus b_dec, plus the error that they miss
    MLP without a dictionary     one error a position

so that any read-out is a sum over tokens, positions, latents, errors, decoder biases and, last, the
model's and the encoder's own biases. The sum closes exactly: `decompose` computes each term by
itself, none as a remainder.

Source: Ameisen et al. 2025, "Circuit tracing"; He et al. 2024 (arXiv 2402.12201) for the full sum.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.circuits.dictionaries import (
    Dictionaries,
    LatentLayers,
    Written,
    affine_places,
    latent_layers,
    mlp_outputs,
)
from saelab.circuits.frozen import FrozenMap, ReadOuts, Skip
from saelab.circuits.terms import Contributions, Latents, Term
from saelab.errors import ConfigError, DataError
from saelab.models import LanguageModel
from saelab.sparse_codes import SparseCodes

__all__ = ["LocalReplacement"]


@final
class LocalReplacement:
    """One prompt's frozen map, with every input of it taken apart.

    Args:
        model: A transformers model that `saelab.load_model` gave.
        dictionaries: What MLPs, or other places, are taken apart with.
        tokens: The prompt, BOS included.
        first_position_as_error: Whether everything written at position 0 counts as error.
            Dictionaries are not trained there, where models park attention.
        reads: Further hook points that read-outs may read, by name.
        cut_heads: Whether what heads give, before W_O, is an input too, an error where no
            dictionary writes it: a sum is then over what reaches a read-out directly, at its own
            position.

    Raises:
        ConfigError: The dictionaries cannot be traced.
        ModelError: The model cannot be held constant.
        DataError: The prompt is empty.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Dictionaries,
        tokens: Int[Tensor, " pos"],
        *,
        first_position_as_error: bool = True,
        reads: Sequence[str] = (),
        cut_heads: bool = False,
    ) -> None:
        if not len(tokens):
            raise DataError("The prompt has no token. Give some text, or a model with a BOS.")
        self.model, self.tokens = model, tokens.to(model.device)
        self.dictionaries: LatentLayers = latent_layers(model, dictionaries)
        self.covered: Bool[Tensor, " pos"] = torch.ones(
            len(tokens), dtype=torch.bool, device=model.device
        )
        self.covered[0] = not first_position_as_error
        written = {one.hook: one for one in self.dictionaries.written}
        self.embedding = model.hook_point("hook_embed").name
        self.position_embeddings = _position_embeddings(model)
        self.cut_heads = cut_heads
        self.cuts = _written_cuts(model, written, cut_heads)
        """Places written, in the model's order: the rows of `errors`."""
        self.map = FrozenMap(
            model,
            tokens,
            [self.embedding, *self.position_embeddings, *self.cuts],
            [layer.hook for layer in self.dictionaries.layers] + affine_places(model, reads),
            {
                one.hook: Skip(one.reads, one.W_skip, self.covered)
                for one in written.values()
                if one.W_skip is not None
            },
        )
        self.codes = self._encode()
        self.latents = Latents.of(self.codes)
        self.written: dict[str, Written] = written
        self.errors: dict[str, Tensor] = self._errors()

    def terms(self) -> tuple[Term, ...]:
        """What there is to add, in the order of `Contributions.table`."""
        hooks = [layer.hook for layer in self.dictionaries.layers]
        active = zip(*(x.tolist() for x in self.latents.places()), strict=True)
        ids = self.tokens.tolist()
        return (
            *(Term("latent", hooks[site], at, index) for site, at, index in active),
            *(Term("error", cut, at) for cut in self.cuts for at in range(len(ids))),
            *(Term("token", None, at, token) for at, token in enumerate(ids)),
            *(Term("position", None, at) for at in range(len(ids))),
            *(Term("decoder_bias", cut) for cut in self.cuts),
            Term("bias"),
        )

    def readouts(self, latents: Int[Tensor, " latent"]) -> list[ReadOuts]:
        """Read-outs of the pre-activations of some active latents, in ascending order.

        Args:
            latents: Places among `self.latents`, ascending.
        """
        found = []
        for site, layer in enumerate(self.dictionaries.layers):
            mine = latents[self.latents.site[latents] == site]
            if len(mine):
                directions, offsets = layer.encoder(self.latents.index[mine])
                positions = self.latents.position[mine]
                found.append(ReadOuts(layer.hook, positions, directions, offsets))
        return found

    def values(self, readouts: Sequence[ReadOuts]) -> Float[Tensor, " readout"]:
        """What the read-outs are on this prompt."""
        reads = self.map.reads
        return torch.cat([some.values(reads) for some in readouts])

    @torch.no_grad()
    def decompose(self, readouts: Sequence[ReadOuts]) -> Contributions:
        """Take read-outs apart: what each term of each vector written adds to them.

        One backward pass; needs n_readouts x cuts x pos x width numbers, so ask for tens at once.
        """
        slopes, constants, values = self.map.slopes(readouts), self.map.constants, self.map.values
        n, n_pos = sum(len(some) for some in readouts), len(self.tokens)
        empty = self.errors[self.cuts[0]].new_zeros(n, n_pos)

        def by_position(hook: str, vectors: Tensor) -> Tensor:
            if hook not in slopes:
                return empty
            return torch.einsum("rpd,pd->rp", slopes[hook], vectors)

        tokens = by_position(self.embedding, values[self.embedding])
        learned = [by_position(hook, values[hook]) for hook in self.position_embeddings]
        errors = [by_position(cut, self.errors[cut]) for cut in self.cuts]
        biases = [by_position(cut, self._bias(cut)).sum(1) for cut in self.cuts]
        return Contributions(
            latents=self._of_latents(slopes, n),
            errors=torch.stack(errors, dim=1),
            tokens=tokens,
            positions=sum(learned, start=empty),
            decoder_biases=torch.stack(biases, dim=1),
            bias=torch.cat([some.values(constants) for some in readouts]),
        )

    def vectors(self, latents: Int[Tensor, " latent"]) -> dict[str, Float[Tensor, "latent d_out"]]:
        """What one unit of each of some latents adds at every place it writes, by place."""
        found: dict[str, Tensor] = {}
        for site, layer in enumerate(self.dictionaries.layers):
            mine = (self.latents.site[latents] == site).nonzero().flatten()
            for cut in layer.writes if len(mine) else ():
                rows = layer.decoder(self.latents.index[latents[mine]], cut)
                whole = found.setdefault(cut, rows.new_zeros(len(latents), rows.shape[1]))
                whole[mine] = rows
        return found

    def _of_latents(self, slopes: Mapping[str, Tensor], n: int) -> Float[Tensor, "readout latent"]:
        found = self.errors[self.cuts[0]].new_zeros(n, len(self.latents))
        first = 0
        for layer, codes in zip(self.dictionaries.layers, self.codes, strict=True):
            for cut in layer.writes if codes.n_pairs else ():
                if cut not in slopes:
                    continue
                rows = layer.decoder(codes.indices, cut).to(found)
                offsets = codes.offsets.tolist()
                # One product a position: gathering the slopes of every pair would need n_readouts
                # vectors a pair.
                for at, (start, end) in enumerate(pairwise(offsets)):
                    part = slopes[cut][:, at] @ rows[start:end].T
                    found[:, first + start : first + end] += part
            found[:, first : first + codes.n_pairs] *= codes.values.to(found)
            first += codes.n_pairs
        return found

    def _encode(self) -> list[SparseCodes]:
        """Latents at covered positions; elsewhere none."""
        kept = []
        for codes in self.dictionaries.encode(self.map.reads):
            at = codes.tokens
            open_to_latents = self.covered[at]
            kept.append(
                SparseCodes.from_pairs(
                    at[open_to_latents],
                    codes.indices[open_to_latents],
                    codes.values[open_to_latents],
                    codes.n_tokens,
                    codes.d_sae,
                )
            )
        return kept

    def _errors(self) -> dict[str, Float[Tensor, "pos d_out"]]:
        """By cut: what neither latents nor the decoder bias account for."""
        errors = {cut: self.map.values[cut] - self._bias(cut) for cut in self.cuts}
        for layer, codes in zip(self.dictionaries.layers, self.codes, strict=True):
            for cut in layer.writes:
                rows = layer.decoder(codes.indices, cut).to(errors[cut])
                rows = rows * codes.values.to(rows)[:, None]
                errors[cut] = errors[cut].index_add(0, codes.tokens, -rows)
        return errors

    def _bias(self, cut: str) -> Float[Tensor, "pos d_out"]:
        """The decoder bias where latents stand in; zero elsewhere."""
        values = self.map.values[cut]
        if cut not in self.written:
            return torch.zeros_like(values)
        return self.covered[:, None] * self.written[cut].bias.to(values)


def _written_cuts(
    model: LanguageModel, written: Mapping[str, Written], cut_heads: bool
) -> tuple[str, ...]:
    """Every MLP's output, and wherever else something is written, in the order the model runs."""
    cuts = []
    for layer in range(model.n_layers):
        heads = model.hook_point(f"blocks.{layer}.attn.hook_z").name if cut_heads else None
        if heads is not None and heads not in written:
            cuts.append(heads)
        if not any(name in written for name in mlp_outputs(model, layer)):
            cuts.append(model.hook_point(f"blocks.{layer}.hook_mlp_out").name)
    places = [point.name for point in model.hook_points()]
    # A place before a norm that follows the MLP has no name of its own; the next one has.
    near = {
        name: mlp_outputs(model, one.layer)[0] if name not in places else name
        for name, one in written.items()
    }
    near |= {name: name for name in cuts}
    return tuple(sorted(near, key=lambda name: places.index(near[name])))


def _position_embeddings(model: LanguageModel) -> tuple[str, ...]:
    """Embeddings besides the tokens' that are added to the residual stream."""
    module = getattr(model, "module", None)
    tokens = model.hook_point("hook_embed").module
    found = []
    for path, sub in () if module is None else module.named_modules():
        if isinstance(sub, torch.nn.Embedding) and path != tokens:
            point = model.hook_point(f"{path}.output")
            if point.layer is not None or point.width != model.d_model:
                raise ConfigError(
                    f"{model.name} has an embedding {path} that is not added to its residual "
                    "stream at the start; saelab does not know how to trace it."
                )
            found.append(point.name)
    return tuple(found)
