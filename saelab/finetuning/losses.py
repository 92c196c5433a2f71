"""What does a reconstruction cost the model it is spliced into, as something to minimize?

Each batch of rows is run twice. The clean pass gives the activations at the hook point, those at
later hook points, and the model's predictions. In the second pass the reconstruction stands in for
the activation, and every loss compares the two:

    kl           mean over predictions of KL(clean || spliced)
    ce           mean over predictions of -log p_spliced(next token)
    downstream   mean over later hook points of sum |a - a_clean|^2 / sum |a_clean - mean|^2
    mse          E|x - recons|^2 over E|x - mean(x)|^2, at the hook point itself

A reconstruction is put at kept positions after position 0 whose norm is no outlier; a prediction
counts when made from a kept position after position 0 for a kept token of the same document. BOS
and padding are in none of them.

Two terms of different nature are balanced by `balanced`, so that neither has to be weighted by
hand. Sources: Braun, Taylor, Goldowsky-Dill and Sharkey 2024, "Identifying functionally important
features with end-to-end sparse dictionary learning", for KL and downstream; Karvonen 2025,
"Revisiting end-to-end sparse autoencoder training", for KL with a rescaled MSE as a last stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.models import LanguageModel
from saelab.positions import edited_positions, scored_predictions
from saelab.sae import SAE
from saelab.tokens import Tokens

__all__ = [
    "CleanPass",
    "SpliceCost",
    "SplicedPass",
    "balanced",
    "clean_pass",
    "splice_cost",
    "spliced_pass",
]


@final
@dataclass(frozen=True, slots=True, eq=False)
class CleanPass:
    """What the untouched model does with some rows; nothing here has a gradient."""

    ids: Int[Tensor, "row pos"]
    """Token ids."""
    mask: Bool[Tensor, "row pos"] | None
    """True at real tokens; None if all are."""
    hook: str
    """Where the reconstruction will go."""
    inputs: Float[Tensor, "touched d"]
    """Activations there, at the positions it will replace."""
    touched: Bool[Tensor, "row pos"]
    """Those positions."""
    scored: Bool[Tensor, "row pos_minus_one"]
    """Predictions that count."""
    log_probs: Float[Tensor, "prediction d_vocab"]
    """Of the next token, at those."""
    later: dict[str, Float[Tensor, "touched _"]]
    """Activations at later hook points, at the same positions."""

    @property
    def targets(self) -> Int[Tensor, " prediction"]:
        """The tokens that came next."""
        return self.ids[:, 1:][self.scored]


@final
@dataclass(frozen=True, slots=True, eq=False)
class SplicedPass:
    """What the model does with a reconstruction in it; differentiable in the reconstruction."""

    clean: CleanPass
    log_probs: Float[Tensor, "prediction d_vocab"]
    later: dict[str, Float[Tensor, "touched _"]]

    def kl(self) -> Float[Tensor, ""]:
        """Mean KL(clean || spliced) of the predictions, in nats; at least 0."""
        difference = self.clean.log_probs - self.log_probs
        return (self.clean.log_probs.exp() * difference).sum(1).mean()

    def ce(self) -> Float[Tensor, ""]:
        """Mean cross-entropy of the predictions, in nats."""
        return -self.log_probs.gather(1, self.clean.targets.unsqueeze(1)).mean()

    def downstream(self) -> Float[Tensor, ""]:
        """Mean over later hook points of the squared error over the variance of the batch."""
        parts = []
        for name, found in self.later.items():
            wanted = self.clean.later[name]
            spread = (wanted - wanted.mean(0)).square().sum()
            parts.append((found - wanted).square().sum() / spread)
        return torch.stack(parts).mean()


def balanced(first: Float[Tensor, ""], second: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Half the sum of two losses, the second rescaled to the first's current value.

        1/2 (first + sg(first / second) * second)

    where sg lets no gradient through: the value is `first`, and both push equally hard in relative
    terms. A second loss of exactly 0 has nothing left to push and counts as 0.

    Source: Karvonen 2025.

    >>> balanced(torch.tensor(3.0), torch.tensor(0.5)).item()
    3.0
    """
    usable = second.detach() > 0
    ratio = torch.where(usable, first.detach() / second.detach(), torch.zeros_like(first))
    return (first + ratio * second) / 2


@torch.no_grad()
def clean_pass(
    model: LanguageModel,
    part: Tokens,
    hook: str,
    later: Sequence[str] = (),
    norm_limit: float | None = None,
) -> CleanPass:
    """Run rows through the untouched model.

    Args:
        model: Nothing may be edited in it.
        part: A few rows; logits of all of them are held at once.
        hook: Where a reconstruction will go.
        later: Hook points after it whose activations are compared.
        norm_limit: Positions whose activation is longer are left alone; None for no limit.

    Raises:
        DataError: No prediction or no position counts, or something is not finite.
    """
    ids = part.ids.to(model.device, torch.int64)
    mask = part.mask if part.padded else None
    logits, found = model.whole_pass(ids, [hook, *later], mask)
    touched = edited_positions(found[hook], part.kept, norm_limit)
    scored = scored_predictions(part.kept, part.document).to(model.device)
    if not bool(touched.any()) or not bool(scored.any()):
        raise DataError(
            f"{len(ids)} rows of {ids.shape[1]} tokens hold no position to splice at, or no "
            "prediction to score. Use longer rows, more rows at once, or more text."
        )
    return CleanPass(
        ids=ids,
        mask=mask,
        hook=hook,
        inputs=_wide(found[hook][touched]),
        touched=touched,
        scored=scored,
        log_probs=_wide(logits[:, :-1][scored]).log_softmax(1),
        later={name: _wide(found[name][touched]) for name in later},
    )


def spliced_pass(
    model: LanguageModel, clean: CleanPass, recons: Float[Tensor, "touched d"]
) -> SplicedPass:
    """Run the same rows with a reconstruction in place of the activation.

    Args:
        model: The same model.
        clean: What it does by itself.
        recons: In the model's units, one for each of `clean.inputs`; gradients lead back to it.
    """

    def put(activation: Tensor) -> Tensor:
        edited = activation.clone()
        edited[clean.touched] = recons.to(activation)
        return edited

    with model.editing({clean.hook: put}):
        logits, found = model.whole_pass(clean.ids, list(clean.later), clean.mask)
    return SplicedPass(
        clean=clean,
        log_probs=_wide(logits[:, :-1][clean.scored]).log_softmax(1),
        later={name: _wide(found[name][clean.touched]) for name in clean.later},
    )


@final
@dataclass(frozen=True, kw_only=True)
class SpliceCost:
    """Both sides of the trade: how well activations and how well predictions survive."""

    fvu: float
    """Fraction of the activations' variance that the reconstruction misses."""
    l0: float
    """Mean active latents per token."""
    kl: float
    """Mean KL(clean || spliced) per prediction, in nats."""
    ce_clean: float
    """Cross-entropy of the untouched model, in nats per prediction."""
    ce_spliced: float
    """With the reconstruction in it."""
    n_predictions: int
    """Predictions averaged."""


@torch.no_grad()
def splice_cost(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    norm_limit: float | None = None,
    rows_at_once: int = 4,
) -> SpliceCost:
    """Measure a dictionary as it encodes at inference.

    Args:
        sae: Reads and writes one hook point.
        model: The model it belongs to.
        tokens: Every row is used.
        norm_limit: Positions whose activation is longer are left alone; None for no limit.
        rows_at_once: Rows of which two sets of logits are held.
    """
    totals = dict.fromkeys(("kl", "ce_clean", "ce_spliced"), 0.0)
    missed = squares = 0.0
    total = torch.zeros(sae.d_in, dtype=torch.float64, device=model.device)
    n_pairs = n_tokens = n_predictions = 0
    for start in range(0, tokens.n_rows, rows_at_once):
        clean = clean_pass(
            model, tokens[start : start + rows_at_once], str(sae.hook), (), norm_limit
        )
        codes = sae.encode(clean.inputs)
        recons = sae.decode(codes).to(clean.inputs)
        spliced = spliced_pass(model, clean, recons)
        untouched = SplicedPass(clean=clean, log_probs=clean.log_probs, later={})
        count = len(clean.targets)
        totals["kl"] += float(spliced.kl()) * count
        totals["ce_spliced"] += float(spliced.ce()) * count
        totals["ce_clean"] += float(untouched.ce()) * count
        missed += float((clean.inputs - recons).double().square().sum())
        squares += float(clean.inputs.double().square().sum())
        total += clean.inputs.double().sum(0)
        n_predictions += count
        n_tokens += len(clean.inputs)
        n_pairs += codes.n_pairs
    variance = squares - float(total.square().sum()) / n_tokens
    means = {name: value / n_predictions for name, value in totals.items()}
    return SpliceCost(
        fvu=missed / variance, l0=n_pairs / n_tokens, n_predictions=n_predictions, **means
    )


def _wide(values: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for a difference of log probabilities."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
