"""Which prompts is a circuit found on, and what is measured on them?

A pair is a clean prompt and a patch prompt of the same length, which differ in what the behavior
depends on, and two answers: the one that the clean prompt calls for, and the one that the patch
prompt calls for. What is measured, m, is a number for each row, larger for a better answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.models import LanguageModel

__all__ = ["Measure", "Pairs", "logit_difference", "probability_difference", "tokenized_pairs"]

Measure = Callable[[Any, Any, Any], Tensor]
"""Logits [row, d_vocab] after the last position, answers [row], others [row]; a number a row."""


def logit_difference(
    logits: Float[Tensor, "row d_vocab"], answers: Int[Tensor, " row"], others: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Logit of the answer minus that of the other.

    >>> logit_difference(torch.tensor([[1.0, 3.0]]), torch.tensor([1]), torch.tensor([0]))
    tensor([2.])
    """
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, answers.to(logits.device)] - logits[rows, others.to(logits.device)]


def probability_difference(
    logits: Float[Tensor, "row d_vocab"], answers: Int[Tensor, " row"], others: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Probability of the answer minus that of the other, -1 to 1."""
    return logit_difference(logits.softmax(-1), answers, others)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of prompts with their answers.

    Raises:
        ShapeError: The parts do not have as many rows, or prompts not as many tokens.
        DataError: There is no row.
    """

    clean: Int[Tensor, "row pos"]
    """Token ids, BOS included."""
    patch: Int[Tensor, "row pos"]
    """Token ids that stand in for the clean ones, row by row."""
    answers: Int[Tensor, " row"]
    """What the clean prompt calls for."""
    others: Int[Tensor, " row"]
    """What it is compared with."""
    measure: Measure = logit_difference
    """What is measured after the last token."""

    def __post_init__(self) -> None:
        rows = {len(self.clean), len(self.patch), len(self.answers), len(self.others)}
        if self.clean.shape != self.patch.shape or self.clean.dim() != 2 or len(rows) > 1:
            raise ShapeError(
                f"Clean {list(self.clean.shape)}, patch {list(self.patch.shape)}, answers "
                f"{list(self.answers.shape)} and others {list(self.others.shape)} do not pair up: "
                "give token ids [row, pos] of one length, and an answer of each kind a row."
            )
        if not self.clean.numel():
            raise DataError("No pair of prompts was given.")

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.clean)

    def at(self, rows: Int[Tensor, " some"] | slice) -> "Pairs":
        """Some of the pairs."""
        return replace(
            self,
            clean=self.clean[rows],
            patch=self.patch[rows],
            answers=self.answers[rows],
            others=self.others[rows],
        )

    def batches(self, size: int) -> Iterator["Pairs"]:
        """All pairs, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.at(slice(start, start + size))

    def split(self, seed: int = 0) -> tuple["Pairs", "Pairs"]:
        """Two halves, chosen by chance: one to find a circuit on and one to test it on.

        Raises:
            DataError: There is one pair only.
        """
        if len(self) < 2:
            raise DataError("One pair cannot be split into discovery and test. Give at least two.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        half = len(self) // 2
        return self.at(order[:half].sort().values), self.at(order[half:].sort().values)

    def swapped(self) -> "Pairs":
        """The patch prompts as the clean ones, and the reverse; answers as they were."""
        return replace(self, clean=self.patch, patch=self.clean)

    def resampled(self, seed: int = 0) -> "Pairs":
        """Clean prompts of other rows as the patch: what stands in is typical, but not opposite.

        Raises:
            DataError: There is one pair only.
        """
        if len(self) < 2:
            raise DataError("One pair has no other row to take a prompt from.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # a cycle: no row is its own other
        return replace(self, patch=self.clean[other])

    def relabelled(self, seed: int = 0) -> "Pairs":
        """Null: in half of the rows, chosen by chance, the answers change places.

        No component can then work for or against the answer on the whole; what a method still
        ranks high is large on single prompts.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        swap = torch.zeros(len(self), dtype=torch.bool)
        swap[order[: len(self) // 2]] = True
        swap = swap.to(self.answers.device)
        return replace(
            self,
            answers=torch.where(swap, self.others, self.answers),
            others=torch.where(swap, self.answers, self.others),
        )

    def measured(self, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
        """What is measured, given the logits after the last token.

        Raises:
            ShapeError: The measure does not give one number a row.
        """
        value = self.measure(logits, self.answers, self.others)
        if not isinstance(value, Tensor) or value.shape != (len(self),):
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"The measure was given {len(self)} rows and returned {found}; return one number "
                "a row."
            )
        return value


def tokenized_pairs(
    model: LanguageModel,
    prompts: Sequence[tuple[str, str, str, str]],
    measure: Measure = logit_difference,
) -> Pairs:
    """Pairs from text, with the model's BOS first.

    Args:
        model: Whose tokens.
        prompts: Clean prompt, patch prompt, answer, other answer; the answers with their space.
        measure: What is measured.

    Raises:
        ConfigError: An answer is not one token.
        ShapeError: Prompts differ in length; the message names the first.
        DataError: There is no prompt.
    """
    if not prompts:
        raise DataError("No pair of prompts was given.")
    bos = [] if model.bos_token_id is None else [model.bos_token_id]
    rows = [[bos + model.encode(text) for text in one[:2]] for one in prompts]
    length = len(rows[0][0])
    for one, texts in zip(rows, prompts, strict=True):
        for ids, text in zip(one, texts, strict=False):
            if len(ids) != length:
                raise ShapeError(
                    f"{text!r} has {len(ids)} tokens and {prompts[0][0]!r} has {length}; prompts "
                    "of one circuit must have one length, so that positions line up."
                )
    answers = [[_single(model, text) for text in one[2:]] for one in prompts]
    return Pairs(
        clean=torch.tensor([clean for clean, _ in rows]),
        patch=torch.tensor([patch for _, patch in rows]),
        answers=torch.tensor([answer for answer, _ in answers]),
        others=torch.tensor([other for _, other in answers]),
        measure=measure,
    )


def _single(model: LanguageModel, text: str) -> int:
    ids = model.encode(text)
    if len(ids) != 1:
        raise ConfigError(
            f"The answer {text!r} is {len(ids)} tokens of {model.name}, and must be one. Choose "
            "another word, or check its leading space."
        )
    return ids[0]
