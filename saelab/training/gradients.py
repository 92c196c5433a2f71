"""What is the loss of a batch, and its exact gradient: whole or in slices, here or over ranks?

    1. select the pairs of all tokens (a rule that looks at the batch sees all of it)
    2. slice by slice: decode the pairs, add up the terms, gradients into one set of buffers
    3. average the buffers over the ranks

A gradient over equal slices is the mean of theirs. Where a term is not a mean over tokens, the
means it is made of must be those of the whole batch (`Step.mean`): over ranks they are exchanged;
over slices, which come one after the other, a pass without gradient learns them first.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions import AbsTopK, ActivationFunction, TopK
from saelab.distributed import ALONE, Ranks
from saelab.errors import ConfigError
from saelab.kernels import Bfloat16Selection, GradientBuffers, Pairs
from saelab.objectives import Step, Term
from saelab.pair_forward import PairForward
from saelab.sae import SAE, FoundPairs
from saelab.training.batch_means import BatchMeans, UnknownMean
from saelab.training.config import TrainConfig
from saelab.training.latent_shards import Shard

__all__ = ["Gradients", "coarse_selection"]

PROBE_ROWS = 64
"""Rows on which a rule makes its first guess, the same on every rank."""


_Part = tuple[Tensor, Tensor, dict[str, FoundPairs]]
"""Inputs, targets and pairs of some tokens."""


@final
class Gradients:
    """The gradient of an objective, in buffers that last a whole run.

    Args:
        sae: The dictionary, or this rank's shard of it.
        terms: The objective.
        hooks: What is read: the input's hook point, then a transcoder's target.
        ranks: The processes of the run.
        shard: Where the latents are divided: how.
        slice_tokens: Tokens at a time; None for all.
    """

    def __init__(
        self,
        sae: SAE,
        terms: Sequence[Term],
        hooks: Sequence[str],
        ranks: Ranks = ALONE,
        shard: Shard | None = None,
        slice_tokens: int | None = None,
    ) -> None:
        self.sae, self.terms, self.hooks = sae, tuple(terms), tuple(hooks)
        self.ranks, self._shard, self._slice_tokens = ranks, shard, slice_tokens
        self._parameters = dict(sae.named_parameters())
        leaves = list(self._parameters.values()) + ([] if shard is None else [shard.b_pre])
        self._buffers = GradientBuffers(leaves)
        self._guessed = ranks.world == 1
        self.variance = 0.0
        """E|target - mean|^2 of a sample, in normalized units."""

    def of(self, name: str) -> Tensor:
        """The gradient of a parameter."""
        return self._buffers.of(self._parameters[name])

    @torch.enable_grad()  # also where the caller has turned gradients off
    def __call__(
        self, rows: Mapping[str, Tensor], dead: Bool[Tensor, " d_sae"], progress: float
    ) -> tuple[Step, dict[str, float]]:
        """Fill the buffers.

        Args:
            rows: Activations by hook point; where tokens are divided, of the whole batch.
            dead: Latents that count as dead.
            progress: Share of the budget spent so far, 0 to 1.

        Returns:
            The step on this rank's tokens, and the loss and the value of each term on the batch.
        """
        inputs, targets = self._read(rows, progress)
        found = self._find(inputs, dead)
        parts = list(self._parts(inputs, targets, found))
        means = BatchMeans(self.ranks, in_parts=len(parts) > 1)
        if len(parts) > 1:
            self._learn_means(parts, means, progress)
        self._buffers.begin()
        steps, values = [], []
        for part in parts:
            step = self._forward(*part, means, progress)
            terms = torch.stack([term(step) for term in self.terms])
            (terms.sum() / len(parts)).backward()
            self._collect()
            steps.append(step)
            values.append(terms.detach())
        numbers = self._numbers(torch.stack(values).mean(0))
        self._buffers.finish()
        self._reduce()
        return (steps[0] if len(steps) == 1 else _joined(steps, found)), numbers

    def whole(self, step: Step) -> Step:
        """The step over all ranks' tokens, without gradient."""
        if not self.ranks.divides_tokens:
            return step
        gather = self.ranks.gather
        forward = step.forward

        def pairs_of(pairs: Pairs, values: Tensor) -> FoundPairs:
            return _stacked(gather(pairs.offsets.diff()), gather(pairs.indices), pairs), torch.cat(
                gather(values.detach())
            )

        pairs, pre_acts = pairs_of(forward.pairs, forward.pre_acts)
        joined = PairForward(
            torch.cat(gather(forward.inputs)),
            pairs,
            pre_acts,
            torch.cat(gather(forward.latents.detach())),
            torch.cat(gather(forward.recons.detach())),
            {name: pairs_of(*extra) for name, extra in sorted(forward.extra.items())},
        )
        targets = torch.cat(gather(step.targets))
        return Step(step.sae, joined, targets, step.variance, None, step.progress)

    def _read(self, rows: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Tensor]:
        """Inputs and targets of this rank, in normalized units; the rule begins its step."""
        sae, activation = self.sae, self.sae.activation
        mine = {name: rows[name] for name in (*self.hooks, *activation.reads)}
        if not self._guessed:
            self._guess_alike(mine[self.hooks[0]])
        if self.ranks.divides_tokens:
            own = self.ranks.share(len(mine[self.hooks[0]]), "tokens of a batch")
            mine = {name: x[own] for name, x in mine.items()}
        mine = {name: x.to(sae.device, sae.dtype) for name, x in mine.items()}
        activation.begin_step(progress, {name: mine[name] for name in activation.reads})
        inputs = mine[self.hooks[0]] * sae.normalization.scale_in
        if not sae.is_transcoder:
            return inputs, inputs
        return inputs, mine[self.hooks[1]] * sae.normalization.scale_out

    @torch.no_grad()
    def _guess_alike(self, rows: Tensor) -> None:
        """Let a rule that guesses from the first rows it sees do so alike on every rank."""
        pre_acts = self.sae.pre_activations(rows[:PROBE_ROWS])
        if self.ranks.divides_latents:
            pre_acts = torch.cat([part.T for part in self.ranks.gather(pre_acts.T.contiguous())], 1)
        self.sae.activation.select_training(pre_acts)
        self._guessed = True

    def _find(self, inputs: Tensor, dead: Tensor) -> dict[str, FoundPairs]:
        if self._shard is not None:
            return self._shard.select(inputs, self.terms, dead)
        asked = {term.name: term.selection(self.sae, dead) for term in self.terms}
        extra = {name: selection for name, selection in asked.items() if selection is not None}
        batchwise = type(self.sae.activation).settle is not ActivationFunction.settle
        settle = self._settle if self.ranks.divides_tokens and batchwise else None
        return self.sae.select_pairs(inputs, training=True, extra=extra, settle=settle)

    def _settle(self, pairs: Pairs, pre_acts: Tensor) -> Tensor | None:
        """What the rule keeps of this rank's pairs, decided over the pairs of all ranks."""
        gather = self.ranks.gather
        everyone = _stacked(gather(pairs.offsets.diff()), gather(pairs.indices), pairs)
        parts = gather(pre_acts)
        kept = self.sae.activation.settle(everyone, torch.cat(parts))
        return None if kept is None else kept.split([len(part) for part in parts])[self.ranks.rank]

    def _parts(
        self, inputs: Tensor, targets: Tensor, found: dict[str, FoundPairs]
    ) -> Sequence[_Part]:
        size = self._slice_tokens or len(inputs)
        if size >= len(inputs):
            return [(inputs, targets, found)]
        return [
            (
                inputs[start : start + size],
                targets[start : start + size],
                {name: _rows(*one, start, start + size) for name, one in found.items()},
            )
            for start in range(0, len(inputs), size)
        ]

    def _forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        found: dict[str, FoundPairs],
        means: BatchMeans,
        progress: float,
    ) -> Step:
        means.begin_part()
        if self._shard is not None:
            forward = self._shard.forward(inputs, found, self._buffers)
        else:
            forward = self.sae.forward_found(inputs, found, self._buffers)
        buffers = self._buffers
        add = self.ranks.add if self.ranks.divides_latents else _itself
        return Step(self.sae, forward, targets, self.variance, buffers, progress, means, add)

    @torch.no_grad()
    def _learn_means(self, parts: Sequence[_Part], means: BatchMeans, progress: float) -> None:
        """Find every mean that the terms will ask for, one more in each pass over the slices."""
        while True:
            asked = []
            for part in parts:
                try:
                    step = self._forward(*part, means, progress)
                    for term in self.terms:
                        term(step)
                except UnknownMean as unknown:
                    asked.append(unknown.value)
                else:
                    return  # every slice asks alike
            means.learn(torch.stack(asked).mean(0))

    def _collect(self) -> None:
        """Take in what reached parameters through autograd, not through the kernels."""
        for parameter in self._parameters.values():
            if parameter.grad is not None:
                self._buffers.add(parameter, parameter.grad)
                parameter.grad = None

    def _reduce(self) -> None:
        if self._shard is not None:
            self._shard.reduce(self._buffers)
        elif self.ranks.divides_tokens:
            for parameter in self._parameters.values():
                self.ranks.sum_(self._buffers.of(parameter)).div_(self.ranks.world)

    def _numbers(self, values: Float[Tensor, " term"]) -> dict[str, float]:
        values = self.ranks.mean(values) if self.ranks.divides_tokens else values
        named = zip((term.name for term in self.terms), values.tolist(), strict=True)
        return {"loss": values.sum().item(), **dict(named)}


def _itself(value: Tensor) -> Tensor:
    return value


def _rows(pairs: Pairs, values: Tensor, start: int, stop: int) -> FoundPairs:
    """The pairs of some tokens."""
    first, last = int(pairs.offsets[start]), int(pairs.offsets[stop])
    offsets = pairs.offsets[start : stop + 1] - first
    return Pairs(offsets, pairs.indices[first:last], pairs.n_latents), values[first:last]


def _stacked(counts: Sequence[Tensor], indices: Sequence[Tensor], like: Pairs) -> Pairs:
    """Patterns of several sets of tokens as one."""
    together = torch.cat(list(counts))
    offsets = torch.cat([together.new_zeros(1), together.cumsum(0)])
    return Pairs(offsets, torch.cat(list(indices)), like.n_latents)


def _joined(steps: Sequence[Step], found: dict[str, FoundPairs]) -> Step:
    """The steps of a batch's slices as one, without gradient."""
    first = steps[0]
    pairs, pre_acts = found[""]
    forward = PairForward(
        torch.cat([step.forward.inputs for step in steps]),
        pairs,
        pre_acts,
        torch.cat([step.forward.latents.detach() for step in steps]),
        torch.cat([step.forward.recons.detach() for step in steps]),
        {name: pair for name, pair in found.items() if name},
    )
    targets = torch.cat([step.targets for step in steps])
    return Step(first.sae, forward, targets, first.variance, None, first.progress)


def coarse_selection(sae: SAE, config: TrainConfig) -> Bfloat16Selection | None:
    """How a run's pairs are selected: None in float32, as everything else is computed.

    Raises:
        ConfigError: bfloat16 is asked of a family that does not keep k latents a token.
    """
    rule = sae.activation
    fits = isinstance(rule, TopK | AbsTopK) and sae.dtype == torch.float32
    if config.selection == "bfloat16" and not fits:
        raise ConfigError(
            f"TrainConfig(selection='bfloat16') is for float32 TopK and AbsTopK dictionaries; this "
            f"one has {rule} in {sae.dtype}. Leave it at 'auto'."
        )
    if config.selection == "float32" or not fits:
        return None
    mode = "on" if config.selection == "bfloat16" else "auto"
    chosen = Bfloat16Selection(mode, sae.device)
    return chosen if chosen.enabled else None
