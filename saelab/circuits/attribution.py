"""What adds how much to the targets, and to the latents that matter for them?

Targets are taken apart first. Each latent found there is a read-out in turn; where there are more
active latents than the budget, the most influential ones by what is known so far come first, and
the ranking is made anew every few batches. Latents beyond the budget stay as terms without an
explanation.

Source: circuit-tracer, for Ameisen et al. 2025, "Circuit tracing".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits.frozen import ReadOuts
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.terms import Contributions

__all__ = ["Attribution", "attribute"]

SLOPES_AT_ONCE = 1 << 26
"""Numbers in the slopes of the read-outs that are taken apart together."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Targets and traced latents, taken apart."""

    contributions: Contributions
    """One row a target, then one row a traced latent."""
    totals: Float[Tensor, " readout"]
    """What each row is on the prompt: a target's value, a latent's pre-activation."""
    traced: Int[Tensor, " traced"]
    """Places among `LocalReplacement.latents`, ascending."""


def attribute(
    replacement: LocalReplacement,
    targets: ReadOuts,
    weights: Float[Tensor, " target"],
    *,
    max_latents: int,
    batch_size: int,
    rerank_every: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> Attribution:
    """Take targets apart, and then latents, the most influential first.

    Args:
        replacement: The prompt.
        targets: Where it all starts.
        weights: How much each target counts.
        max_latents: How many latents are taken apart; further ones stay terms.
        batch_size: Read-outs in one backward pass; fewer where they would need much memory.
        rerank_every: Batches after which latents are ranked anew.
        progress: Called with (read-outs done, in all, what).
    """
    n_active = len(replacement.latents)
    budget = min(max_latents, n_active)
    values = replacement.map.values
    a_row = sum(x.numel() for x in values.values())
    at_once = max(1, min(batch_size, SLOPES_AT_ONCE // a_row))
    rows = _Rows(replacement, len(targets) + budget, weights)
    rows.add([targets], None)
    device = rows.latents.device
    unseen = torch.ones(n_active, dtype=torch.bool, device=device)
    done = 0
    while done < budget:
        wanted = min(budget - done, at_once * rerank_every)
        if budget == n_active:
            queue = unseen.nonzero().flatten()[:wanted]
        else:
            influence = rows.influence().masked_fill(~unseen, -1.0)
            queue = influence.topk(wanted).indices
        for batch in queue.split(at_once):
            batch = batch.sort().values
            rows.add(replacement.readouts(batch), batch)
            unseen[batch] = False
            done += len(batch)
            if progress is not None:
                progress(done, budget, "latents")
    return rows.finished()


@final
class _Rows:
    """Read-outs taken apart so far."""

    def __init__(self, replacement: LocalReplacement, n_rows: int, weights: Tensor) -> None:
        self.replacement = replacement
        values = replacement.map.logits
        n_active = len(replacement.latents)
        self.latents = values.new_zeros(n_rows, n_active)
        self.sizes = values.new_zeros(n_rows)
        self.parts: list[Contributions] = []
        self.totals: list[Tensor] = []
        self.row_of = torch.full((n_active,), -1, device=values.device)
        self.weights = weights.to(values)
        self.filled = 0

    def add(self, readouts: Sequence[ReadOuts], latents: Tensor | None) -> None:
        """Take some read-outs apart: targets, or latents in ascending order."""
        found = self.replacement.decompose(readouts)
        n = len(found.bias)
        rows = slice(self.filled, self.filled + n)
        self.latents[rows] = found.latents
        others = (found.errors.flatten(1), found.tokens, found.positions, found.decoder_biases)
        self.sizes[rows] = sum(
            (part.abs().sum(1) for part in (found.latents, *others)), start=found.bias.abs()
        )
        if latents is not None:
            self.row_of[latents] = torch.arange(rows.start, rows.stop, device=latents.device)
        self.parts.append(found)
        self.totals.append(self.replacement.values(readouts))
        self.filled += n
        found_latents = self.latents[rows]
        # The rows above hold them: keeping each batch's own would need the memory twice.
        self.parts[-1] = _with_latents(found, found_latents)

    def influence(self) -> Float[Tensor, " latent"]:
        """Share of the targets' weight that goes through each latent, by the rows there are."""
        sizes = self.sizes[: self.filled].clamp_min(torch.finfo(self.sizes.dtype).tiny)
        flow = self.sizes.new_zeros(self.filled)
        flow[: len(self.weights)] = self.weights
        total = self.latents.new_zeros(self.latents.shape[1])
        traced = self.row_of >= 0
        while bool(flow.any()):
            arriving = torch.zeros_like(total)
            for chunk in torch.arange(self.filled).split(64):  # a copy of all would be as large
                rows = slice(int(chunk[0]), int(chunk[-1]) + 1)
                arriving += (flow[rows] / sizes[rows]) @ self.latents[rows].abs()
            total += arriving
            flow = torch.zeros_like(flow)
            flow[self.row_of[traced]] = arriving[traced]
        return total

    def finished(self) -> Attribution:
        """Targets first, then latents in ascending order."""
        traced = (self.row_of >= 0).nonzero().flatten()
        n_targets = len(self.weights)
        first = torch.arange(n_targets, device=traced.device)
        order = torch.cat([first, self.row_of[traced]])

        def put(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in self.parts])[order]

        return Attribution(
            Contributions(
                latents=self.latents[order],
                **{
                    name: put(name)
                    for name in ("errors", "tokens", "positions", "decoder_biases", "bias")
                },
            ),
            torch.cat(self.totals)[order],
            traced,
        )


def _with_latents(found: Contributions, latents: Tensor) -> Contributions:
    return Contributions(
        latents=latents,
        errors=found.errors,
        tokens=found.tokens,
        positions=found.positions,
        decoder_biases=found.decoder_biases,
        bias=found.bias,
    )
