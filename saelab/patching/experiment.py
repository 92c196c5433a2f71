"""What does the model do on some pairs of prompts when components are taken away?

An experiment is a model, pairs of prompts, and what stands in for what is taken away:

    patch   what the same component wrote on the patch prompt (resample ablation: `resampled()`)
    mean    its mean over the patch prompts, position by position
    zero    nothing

Everything else in saelab.patching asks an experiment. It counts the passes it makes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.models import LanguageModel
from saelab.patching.checking import check_parts, recorded
from saelab.patching.graph import ComponentGraph
from saelab.patching.layout import blocks_of, torch_model
from saelab.patching.pairs import Pairs
from saelab.patching.removal import CleanRun, Removal, input_hooks, skipping
from saelab.patching.slopes import Slopes

__all__ = ["Cost", "Experiment", "StandIn"]

StandIn = Literal["patch", "mean", "zero"]
"""What is there in place of what was taken away."""


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """What something took."""

    forward: int = 0
    """Prompts run forward."""
    backward: int = 0
    """Prompts run backward."""
    seconds: float = 0.0
    """On the clock."""

    def __sub__(self, before: "Cost") -> "Cost":
        """What was spent since.

        >>> Cost(5, 2, 3.0) - Cost(1, 0, 1.0)
        Cost(forward=4, backward=2, seconds=2.0)
        """
        return Cost(
            self.forward - before.forward,
            self.backward - before.backward,
            self.seconds - before.seconds,
        )

    def __add__(self, other: "Cost") -> "Cost":
        """Both."""
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.seconds + other.seconds,
        )


@final
class Experiment:
    """A model, pairs of prompts, and what stands in for what is taken away.

    Args:
        model: A transformer that `saelab.load_model` gave with its default backend.
        pairs: The prompts.
        stand_in: What is there in place of a component.
        rows_per_batch: Prompts in one pass; n_senders x rows x pos x d_model numbers are held.

    Raises:
        ModelError: The model's heads and MLPs do not add up to its residual stream, or what they
            read cannot be made anew; as in models that normalize what attention has written.
        ConfigError: There is no such stand-in.
    """

    def __init__(
        self,
        model: LanguageModel,
        pairs: Pairs,
        stand_in: StandIn = "patch",
        *,
        rows_per_batch: int = 8,
    ) -> None:
        if stand_in not in ("patch", "mean", "zero") or rows_per_batch < 1:
            raise ConfigError(
                f"Experiment(stand_in={stand_in!r}, rows_per_batch={rows_per_batch}): a stand-in "
                "is 'patch', 'mean' or 'zero', and a batch has at least one row."
            )
        self.model, self.parts = torch_model(model), blocks_of(model)
        first = self.parts[0]
        self.graph = ComponentGraph(
            n_layers=len(self.parts),
            n_heads=first.W_O.shape[0],
            n_key_heads=len(first.projections["k"].weight),
            parallel=first.parallel,
            mlps=first.has_mlp,
        )
        self.pairs, self.kind, self.rows_per_batch = pairs, stand_in, rows_per_batch
        self._blocks = [self.model.module.get_submodule(one.block) for one in self.parts]
        self._forward = self._backward = 0
        self._skippable = check_parts(self.model, self.parts, self.graph, pairs.clean[:1])

    def clock(self) -> Cost:
        """All that was spent so far; subtract two of them."""
        return Cost(self._forward, self._backward, time.perf_counter())

    @cached_property
    def clean_logits(self) -> Float[Tensor, "row d_vocab"]:
        """After the last position, of the untouched model."""
        return torch.cat([self._last(batch.clean) for batch, _ in self._batches])

    @cached_property
    def clean(self) -> float:
        """Mean of what is measured, of the untouched model on the clean prompts."""
        return self._mean(self.clean_logits)

    @cached_property
    def patched(self) -> float:
        """Mean of what is measured, of the untouched model on the patch prompts."""
        batches = self.pairs.batches(self.rows_per_batch)
        return self._mean(torch.cat([self._last(batch.patch) for batch in batches]))

    def logits_without(
        self,
        *,
        edges: Bool[Tensor, "receiver sender"] | None = None,
        nodes: Bool[Tensor, " sender"] | None = None,
    ) -> Float[Tensor, "row d_vocab"]:
        """Logits after the last position of the clean prompts, with components taken away.

        Args:
            edges: Taken away for one receiver each.
            nodes: Senders taken away for all receivers.
        """
        return self._last_logits(edges=edges, nodes=nodes)

    def without(
        self,
        *,
        edges: Bool[Tensor, "receiver sender"] | None = None,
        nodes: Bool[Tensor, " sender"] | None = None,
    ) -> float:
        """Mean of what is measured with components taken away; see `logits_without`."""
        return self._mean(self.logits_without(edges=edges, nodes=nodes))

    def with_offsets(self, offsets: Mapping[str, Float[Tensor, "row pos d_model"]]) -> float:
        """Mean of what is measured when something is added to what some receivers read.

        Args:
            offsets: By receiver, a row for each pair.
        """
        return self._mean(self._last_logits(offsets=offsets))

    def streams(
        self, nodes: Bool[Tensor, " sender"], held: Bool[Tensor, " sender"]
    ) -> dict[str, Float[Tensor, "row pos d_model"]]:
        """What receivers would read with some senders taken away and others held as they were.

        Args:
            nodes: Taken away.
            held: Held at what they write on the clean prompt, whatever they read.

        Returns:
            By hook point of `input_hooks`, the residual stream there.
        """
        found: list[dict[str, Tensor]] = []
        hooks = input_hooks(self.parts)
        for (batch, stand_in), run in zip(self._batches, self._runs, strict=True):
            clean = run.writes
            fixed = torch.where(held[:, None, None, None].to(clean.device), clean, stand_in)
            removal = Removal(self.parts, self.graph, fixed, nodes=nodes | held)
            with torch.no_grad(), self.model.editing(removal.edits()):
                found.append(self.model.whole_pass(batch.clean, hooks)[1])
            self._forward += len(batch)
        return {hook: torch.cat([one[hook] for one in found]) for hook in hooks}

    def slopes(self, share: float | None = None) -> Float[Tensor, "receiver sender"]:
        """Mean over rows of each receiver's slope times each sender's change.

        Args:
            share: Of the clean embedding in the point where slopes are taken, the rest that of
                the stand-in; None for the clean run itself.
        """
        total = None
        for (batch, stand_in), run in zip(self._batches, self._runs, strict=True):
            writes = run.writes
            start = None
            if share is not None:
                start = share * writes[0] + (1 - share) * stand_in[0]
            slopes = Slopes(self.parts, self.graph, stand_in - writes, start)
            with torch.enable_grad(), self.model.editing(slopes.edits()):
                value = batch.measured(self.model.whole_pass(batch.clean)[0][:, -1]).sum()
                assert slopes.leaf is not None, "block 0 did not run"
                torch.autograd.grad(value, slopes.leaf)
            self._forward += len(batch)
            self._backward += len(batch)
            total = slopes.scores if total is None else total + slopes.scores
        assert total is not None, "pairs are not empty"
        return (total / len(self.pairs)).cpu() * self.graph.allowed()

    @torch.no_grad()
    def writes(
        self, tokens: Tensor
    ) -> tuple[Float[Tensor, "sender row pos d_model"], dict[str, Tensor]]:
        """What every sender writes on some prompts, and what else was seen in that pass."""
        self._forward += len(tokens)
        return recorded(self.model, self.parts, tokens)

    @cached_property
    def _runs(self) -> list[CleanRun]:
        found = []
        for batch, _ in self._batches:
            writes, seen = self.writes(batch.clean)
            found.append(CleanRun(writes, tuple(seen[one.stream] for one in self.parts)))
        return found

    @cached_property
    def _batches(self) -> list[tuple[Pairs, Float[Tensor, "sender row_or_one pos_or_one d_model"]]]:
        batches = list(self.pairs.batches(self.rows_per_batch))
        if self.kind == "zero":
            zeros = self.parts[0].W_O.new_zeros(
                len(self.graph.senders), 1, 1, self.parts[0].W_O.shape[2]
            )
            return [(batch, zeros) for batch in batches]
        stand_ins = (self.writes(batch.patch)[0] for batch in batches)
        if self.kind == "patch":
            return list(zip(batches, stand_ins, strict=True))
        total = sum(one.sum(1, keepdim=True) for one in stand_ins)
        assert isinstance(total, Tensor), "pairs are not empty"
        return [(batch, total / len(self.pairs)) for batch in batches]

    def _last_logits(
        self,
        *,
        edges: Tensor | None = None,
        nodes: Tensor | None = None,
        offsets: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "row d_vocab"]:
        found = []
        for n, ((batch, stand_in), clean) in enumerate(zip(self._batches, self._runs, strict=True)):
            rows = slice(n * self.rows_per_batch, (n + 1) * self.rows_per_batch)
            removal = Removal(
                self.parts,
                self.graph,
                stand_in,
                edges=edges,
                nodes=nodes,
                offsets={name: x[rows] for name, x in (offsets or {}).items()},
                clean=clean if self._skippable else None,
            )
            blocks = self._blocks[: removal.start]
            with skipping(blocks), self.model.editing(removal.edits()):
                found.append(self._last(batch.clean))
        return torch.cat(found)

    def _mean(self, logits: Tensor) -> float:
        return float(self.pairs.measured(logits).mean())

    def _last(self, tokens: Tensor) -> Float[Tensor, "row d_vocab"]:
        self._forward += len(tokens)
        return self.model.logits(tokens)[:, -1]
