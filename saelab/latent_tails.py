"""Where is each latent strongest? The n best contexts per latent and sign, in one streaming pass.

Memory is fixed before the pass and linear in the number of latents watched: for each sign, latent
and place in the ranking one strength, one address and one window of values; and a histogram. A
context (token row) counts once per latent and sign, with its strongest token; ties go to the
earliest address. Nothing depends on how the rows were split into batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["DoublingHistogram", "Tail", "TailCollector", "TokenWindow"]

N_BINS = 32


@final
@dataclass(frozen=True, eq=False)
class TokenWindow:
    """A batch of whole token rows, and which of their tokens the codes describe."""

    measured: Bool[Tensor, "row pos"]
    """Tokens that have codes, in row-major order one row of codes each."""
    document: Int[Tensor, "row pos"]
    """Document of each token; a shown context stays inside one document."""
    first_row: int
    """Row number of the batch's first row."""


@final
class DoublingHistogram:
    """Equal-width histograms whose range doubles whenever a larger value arrives.

    Latent i's range is 0 to the power of two just above its largest value. Doubling adds bins in
    pairs, so counts stay exact and do not depend on the order of arrival.

    >>> histogram = DoublingHistogram(1, n_bins=4)
    >>> histogram.update(torch.tensor([0, 0]), torch.tensor([0.3, 0.9]))
    >>> histogram.update(torch.tensor([0]), torch.tensor([1.5]))
    >>> histogram.top().tolist(), histogram.counts.tolist()
    ([2.0], [[1, 1, 0, 1]])
    """

    def __init__(self, n_latents: int, n_bins: int = N_BINS) -> None:
        """Start empty."""
        self.counts = torch.zeros(n_latents, n_bins, dtype=torch.int64)
        self.exponent = torch.full((n_latents,), -(2**20), dtype=torch.int64)

    def top(self) -> Float[Tensor, " latent"]:
        """Upper end of each latent's range; 0 where nothing arrived."""
        return torch.where(self.exponent < -(2**19), 0.0, torch.exp2(self.exponent.double()))

    def update(self, latents: Int[Tensor, " pair"], values: Float[Tensor, " pair"]) -> None:
        """Count values, all above zero."""
        values = values.double()
        n_latents, n_bins = self.counts.shape
        largest = torch.zeros(n_latents, dtype=torch.float64)
        largest.scatter_reduce_(0, latents, values, "amax")
        exponent = torch.frexp(largest)[1].long().masked_fill(largest == 0, -(2**20))
        exponent = torch.maximum(exponent, self.exponent)
        # after this many doublings everything is in the first bin
        doublings = (exponent - self.exponent).clamp_max(n_bins.bit_length())
        while bool((due := doublings > 0).any()):
            pairs = self.counts[due].reshape(-1, n_bins // 2, 2).sum(2)
            self.counts[due] = torch.cat([pairs, torch.zeros_like(pairs)], 1)
            doublings = doublings - 1
        self.exponent = exponent
        places = (values * torch.exp2(-exponent[latents].double()) * n_bins).long()
        flat = latents * n_bins + places.clamp_max(n_bins - 1)
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))


@final
@dataclass(frozen=True, eq=False)
class Tail:
    """One sign of every watched latent."""

    count: Int[Tensor, " latent"]
    """Tokens on which the latent has this sign."""
    strength: Float[Tensor, "latent n"]
    """|activation| at the peak, descending; 0 where there is no such example."""
    row: Int[Tensor, "latent n"]
    """Token row of the example; -1 where there is none."""
    position: Int[Tensor, "latent n"]
    """Position of the peak in its row; -1 where there is none."""
    window: Float[Tensor, "latent n window"]
    """The latent's signed activation around the peak; 0 outside the row, the document, or what
    was measured."""
    histogram: Int[Tensor, "latent bin"]
    """Tokens per equal-width bin of |activation|, from 0 to `top`."""
    top: Float[Tensor, " latent"]
    """Upper end of the histogram, a power of two above the largest |activation|."""

    def __getitem__(self, places: Int[Tensor, " picked"]) -> "Tail":
        """The tail of some latents."""
        return Tail(*(getattr(self, field.name)[places] for field in fields(self)))


@final
class TailCollector:
    """Streams codes into a `Tail`.

    Args:
        latents: Which latents to watch.
        d_sae: How many the dictionary has.
        sign: +1 for activations above zero, -1 for those below.
        n_examples: Contexts kept per latent.
        context: Tokens kept before and after the peak.
    """

    def __init__(
        self,
        latents: Int[Tensor, " latent"],
        d_sae: int,
        *,
        sign: int,
        n_examples: int,
        context: Sequence[int],
    ) -> None:
        if n_examples < 1 or len(context) != 2 or min(context) < 0:
            raise ConfigError(
                f"n_examples={n_examples} and context={tuple(context)}: at least one example, and "
                "the tokens to show before and after its peak, are needed."
            )
        self.sign, self.n, self.d_sae = sign, n_examples, d_sae
        self.latents = latents
        self._local = torch.full((d_sae,), -1).index_put((latents,), torch.arange(len(latents)))
        self._steps = torch.arange(-context[0], context[1] + 1)
        shape = (len(latents), n_examples)
        self._count = torch.zeros(len(latents), dtype=torch.int64)
        self._strength = torch.zeros(shape)
        self._row = torch.full(shape, -1, dtype=torch.int32)
        self._position = torch.full(shape, -1, dtype=torch.int32)
        self._window = torch.zeros(*shape, len(self._steps))
        self._histogram = DoublingHistogram(len(latents))

    def update(self, codes: SparseCodes, batch: TokenWindow) -> None:
        """Add whole rows; rows of later batches must come later (they lose ties).

        Args:
            codes: On the CPU, one row per measured token.
            batch: Where those tokens stand.

        Raises:
            ShapeError: The codes do not describe the batch's measured tokens.
        """
        row, position = batch.measured.nonzero(as_tuple=True)
        if codes.n_tokens != len(row):
            raise ShapeError(
                f"The batch measures {len(row)} tokens but there are codes for {codes.n_tokens}."
            )
        local = self._local[codes.indices]
        strength = codes.values.float() * self.sign
        chosen = ((local >= 0) & (strength > 0)).nonzero().squeeze(1)
        if not len(chosen):
            return
        token, local, strength = codes.tokens[chosen], local[chosen], strength[chosen]
        self._count += torch.bincount(local, minlength=len(self._count))
        self._histogram.update(local, strength)
        better = strength > self._strength[local, -1]
        token, local, strength = token[better], local[better], strength[better]
        token, local, strength, rank = self._ranked(token, local, strength, row)
        window = self._windows(codes, batch, self.latents[local], row[token], position[token])
        addresses = (row[token] + batch.first_row, position[token])
        self._merge(local, rank, strength, addresses, window)

    def result(self) -> Tail:
        """The tail so far."""
        return Tail(
            self._count.clone(),
            self._strength.clone(),
            self._row.clone(),
            self._position.clone(),
            self._window.clone(),
            self._histogram.counts.clone(),
            self._histogram.top(),
        )

    def _ranked(
        self, token: Tensor, local: Tensor, strength: Tensor, row: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best token of each (latent, row), and the n best of those per latent, ranked."""
        order = torch.argsort(strength, descending=True, stable=True)
        group = local[order] * (len(row) + 1) + row[token[order]]
        order = order[torch.argsort(group, stable=True)]
        group = local[order] * (len(row) + 1) + row[token[order]]
        order = order[_starts(group)]
        # rows ascend within a latent here, so equal strengths keep the earliest row first
        order = order[torch.argsort(strength[order], descending=True, stable=True)]
        order = order[torch.argsort(local[order], stable=True)]
        starts = _starts(local[order])
        places = torch.arange(len(order))
        rank = places - places.masked_fill(~starts, 0).cummax(0).values
        kept = rank < self.n
        order = order[kept]
        return token[order], local[order], strength[order], rank[kept]

    def _windows(
        self, codes: SparseCodes, batch: TokenWindow, latent: Tensor, row: Tensor, position: Tensor
    ) -> Float[Tensor, "example window"]:
        """This latent's values around each peak, looked up among the sorted codes."""
        length = batch.measured.shape[1]
        places = position[:, None] + self._steps
        inside = (places >= 0) & (places < length)
        places = places.clamp(0, length - 1)
        inside &= batch.document[row[:, None], places] == batch.document[row, position][:, None]
        number = torch.cumsum(batch.measured.flatten(), 0).reshape(batch.measured.shape) - 1
        inside &= batch.measured[row[:, None], places]
        wanted = number[row[:, None], places] * self.d_sae + latent[:, None]
        keys = codes.tokens * self.d_sae + codes.indices
        found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        inside &= keys[found] == wanted
        return codes.values.float()[found] * inside

    def _merge(
        self,
        local: Tensor,
        rank: Tensor,
        strength: Tensor,
        addresses: tuple[Tensor, Tensor],
        window: Tensor,
    ) -> None:
        """Put new candidates beside the kept ones and keep the n strongest."""
        touched, line = torch.unique(local, return_inverse=True)
        news = [strength, addresses[0], addresses[1], window]
        olds = [self._strength, self._row, self._position, self._window]
        both = []
        for new, old in zip(news, olds, strict=True):
            beside = torch.zeros_like(old[touched])
            beside[line, rank] = new.to(old.dtype)
            both.append(torch.cat([old[touched], beside], 1))
        best = torch.argsort(both[0], dim=1, descending=True, stable=True)[:, : self.n]
        empty = both[0].gather(1, best) == 0
        at = torch.arange(len(touched))[:, None]
        for old, merged in zip(olds, both, strict=True):
            old[touched] = merged[at, best]
        for addressed in (self._row, self._position):
            addressed[touched] = addressed[touched].masked_fill(empty, -1)


def _starts(group: Int[Tensor, " item"]) -> Bool[Tensor, " item"]:
    """Where a run of equal values begins."""
    starts = torch.ones(len(group), dtype=torch.bool)
    starts[1:] = group[1:] != group[:-1]
    return starts
