"""How is a sparse embedding trained? Reconstruct at k and 4k, revive the dead, keep codes apart.

    L = E_k + E_4k / 8 + E_aux / 32 + gamma * contrast

E is the squared error over the embeddings' variance (so weights mean the same for embeddings of any
length; the authors' is the plain mean), E_aux the share of the detached error that dead latents do
not recover. The contrast is `repulsion` of the codes, `pairing` with the codes of partners, or
`label_contrast`. CSRv2 starts with more latents and comes down to k: with few latents from the
start most directions never win and die.

One pass of the encoder serves all selections, and no step makes a dense gradient of the weights'
size times the batch: the kernels are those of dictionary training. Only the contrast looks at codes
as a [batch, d_sae] matrix.

Differences from the authors' code: a latent is dead after `dead_after` steps without being among
the k of any input (theirs counts three forward passes a step, one of them with 4k); the error that
dead latents learn is detached as a whole.

Source: Wen et al. 2025 (CSR); CSRv2 for annealing and labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.embeddings.contrast import label_contrast, pairing, repulsion
from saelab.embeddings.heads import sparse_head
from saelab.errors import ConfigError, DataError
from saelab.kernels import (
    Pairs,
    encode_pairs,
    sparse_decode,
    sparse_pre_activations,
    squared_error,
    top_k,
)
from saelab.kernels.encoding import Selection
from saelab.sae import SAE
from saelab.training.optimizers import Adam

__all__ = ["SparseHeadConfig", "SparseHeadResult", "head_loss", "latents_at", "train_sparse_head"]

_TRAINED = ("W_dec", "b_enc", "b_dec")
"""Weights that are moved; W_enc follows W_dec."""


@final
@dataclass(frozen=True, kw_only=True)
class SparseHeadConfig:
    """How a sparse embedding is trained.

    >>> SparseHeadConfig(k=4, first_k=64).k_at(0), SparseHeadConfig(k=4, first_k=64).k_at(599)
    (64, 4)
    """

    k: int = 32
    """Latents of a code."""
    d_sae: int | None = None
    """Latents in all; None for four times the embedding's width."""
    first_k: int | None = None
    """CSRv2: latents of a code at the first step, brought down to k linearly; None for k."""
    anneal_share: float = 0.7
    """Share of the steps after which k is reached."""
    steps: int = 600
    """Batches."""
    batch_size: int = 256
    """Embeddings of a batch; each is told apart from all others of it."""
    lr: float = 1e-3
    """Adam's learning rate."""
    contrast: int | float = 0.1
    """gamma; 0 leaves the contrast out."""
    temperature: float = 0.2
    """Of the contrast."""
    wide: int | float = 0.125
    """Weight of the error with 4k latents."""
    aux: int | float = 1 / 32
    """Weight of the dead latents' error."""
    aux_k: int = 64
    """Dead latents that may help with each embedding."""
    dead_after: int = 30
    """Steps without being chosen after which a latent is dead."""
    seed: int = 0
    """Of the directions and of the batches."""

    def __post_init__(self) -> None:
        least = ("k", "steps", "batch_size", "aux_k", "dead_after")
        for name in least:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.first_k is not None and self.first_k < self.k:
            raise ConfigError(f"first_k={self.first_k} is annealed down to k={self.k}: it is less.")
        if not 0 < self.anneal_share <= 1 or min(self.lr, self.temperature) <= 0:
            raise ConfigError(
                f"anneal_share={self.anneal_share} must be above 0 and at most 1, lr={self.lr} and "
                f"temperature={self.temperature} above 0."
            )
        if min(self.contrast, self.wide, self.aux) < 0:
            raise ConfigError("contrast, wide and aux are weights of terms and cannot be negative.")

    def k_at(self, step: int) -> int:
        """Latents of a code at a step: from first_k to k, linearly, then k."""
        if self.first_k is None:
            return self.k
        done = min(1.0, step / max(1.0, self.anneal_share * self.steps))
        return round(self.first_k + (self.k - self.first_k) * done)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SparseHeadResult:
    """A trained head."""

    sae: SAE
    """The head."""
    history: tuple[dict[str, float], ...]
    """For each step: loss and its terms, k, and the share of dead latents."""

    @property
    def dead(self) -> float:
        """Share of latents that are dead at the end."""
        return self.history[-1]["dead"]


def train_sparse_head(
    embeddings: Float[Tensor, "text d"],
    config: SparseHeadConfig | None = None,
    *,
    labels: Int[Tensor, " text"] | None = None,
    partners: Float[Tensor, "text d"] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> SparseHeadResult:
    """Train a sparse embedding on dense ones.

    Args:
        embeddings: Dense, of training texts.
        config: How.
        labels: Of each text: those of one label are pulled together (CSRv2).
        partners: What each text is to be found by, such as its query; not together with labels.
        progress: Called with (steps done, steps).

    Raises:
        ConfigError: 4k of the largest k do not fit into d_sae, or both labels and partners.
        DataError: Fewer than two embeddings, or one is not finite.
    """
    config = config or SparseHeadConfig()
    d_sae = config.d_sae or 4 * embeddings.shape[1]
    if 4 * config.k_at(0) > d_sae:
        raise ConfigError(
            f"Codes of up to {config.k_at(0)} latents are also trained with four times as many, "
            f"but there are {d_sae}. Use a smaller k or first_k, or a larger d_sae."
        )
    if labels is not None and partners is not None:
        raise ConfigError("Give labels or partners, not both: there is one contrast.")
    if len(embeddings) < 2 or not bool(torch.isfinite(embeddings).all()):
        raise DataError(f"{len(embeddings)} embeddings, which must be two at least and finite.")
    sae = sparse_head(embeddings, d_sae, config.k, config.seed)
    inputs = embeddings.float() * sae.normalization.scale_in
    others = None if partners is None else partners.float() * sae.normalization.scale_in
    variance = float((inputs - inputs.mean(0)).square().sum(1).mean())
    optimizer = Adam({name: getattr(sae, name).detach() for name in _TRAINED})
    generator = torch.Generator().manual_seed(config.seed)
    silent = torch.zeros(d_sae, dtype=torch.long)
    history = []
    for step in range(config.steps):
        # Each text once: it is not its own opposite.
        rows = torch.randperm(len(inputs), generator=generator)[: config.batch_size]
        terms = head_loss(
            sae,
            inputs[rows],
            config,
            config.k_at(step),
            variance,
            silent >= config.dead_after,
            labels=None if labels is None else labels[rows],
            partners=None if others is None else others[rows],
        )
        sae.zero_grad()
        terms["loss"].backward()
        _step(sae, optimizer, config.lr)
        silent = torch.where(terms.pop("chosen") > 0, 0, silent + 1)
        dead = float((silent >= config.dead_after).float().mean())
        numbers = {name: float(value.detach()) for name, value in terms.items()}
        history.append({**numbers, "k": float(config.k_at(step)), "dead": dead})
        if progress is not None:
            progress(step + 1, config.steps)
    sae.metadata["sparse_head"] = {"k": config.k, "steps": config.steps, "seed": config.seed}
    return SparseHeadResult(sae=sae, history=tuple(history))


def head_loss(
    sae: SAE,
    inputs: Float[Tensor, "row d"],
    config: SparseHeadConfig,
    k: int,
    variance: float,
    dead: Tensor,
    *,
    labels: Int[Tensor, " row"] | None = None,
    partners: Float[Tensor, "row d"] | None = None,
) -> dict[str, Tensor]:
    """The loss of one batch and its terms.

    Args:
        sae: The head, its W_enc equal to W_dec transposed.
        inputs: Embeddings times scale_in.
        config: Weights of the terms.
        k: Latents of a code.
        variance: Mean squared distance of embeddings from their mean, in the same units.
        dead: [d_sae] which latents are dead.
        labels: Of the rows.
        partners: Of the rows, times scale_in.

    Returns:
        loss, its terms unweighted, and "chosen": how many of the rows each latent is in.
    """
    selections: list[Selection] = [TopK(k).select, TopK(4 * k).select]
    few, many, revived = _encoded(sae, inputs, selections, dead, config)
    whole = variance * len(inputs)
    recons = sparse_decode(few[1], sae.W_dec, sae.b_dec, few[0])
    terms = {"error": squared_error(recons, inputs) / whole}
    wide = sparse_decode(many[1], sae.W_dec, sae.b_dec, many[0])
    terms["wide_error"] = squared_error(wide, inputs) / whole
    terms["aux_error"] = _aux(sae, inputs, recons, revived)
    terms["contrast"] = inputs.new_zeros(())
    if config.contrast:
        codes = _matrix(*few)
        if labels is not None:
            terms["contrast"] = label_contrast(codes, labels, config.temperature)
        elif partners is not None:
            (found,) = latents_at(sae, partners, [TopK(k).select])
            terms["contrast"] = pairing(codes, _matrix(*found), config.temperature)
        else:
            terms["contrast"] = repulsion(codes, config.temperature)
    terms["loss"] = (
        terms["error"]
        + config.wide * terms["wide_error"]
        + config.aux * terms["aux_error"]
        + config.contrast * terms["contrast"]
    )
    terms["chosen"] = torch.bincount(few[0].indices, minlength=sae.d_sae)
    return terms


def latents_at(
    sae: SAE, inputs: Float[Tensor, "row d"], selections: list[Selection]
) -> list[tuple[Pairs, Tensor]]:
    """Latents that selections keep, differentiable in the head's weights.

    Args:
        sae: The head.
        inputs: Embeddings times scale_in.
        selections: What to keep; all are made in one pass.
    """
    centred = (inputs - sae.b_dec).detach()
    found = encode_pairs(centred, sae.W_enc.detach().T, sae.b_enc.detach(), selections)
    return [
        (
            pairs,
            sparse_pre_activations(values, centred, sae.W_enc, sae.b_enc, sae.b_dec, pairs).relu(),
        )
        for pairs, values in found
    ]


def _encoded(
    sae: SAE, inputs: Tensor, selections: list[Selection], dead: Tensor, config: SparseHeadConfig
) -> list[Any]:
    """Latents at k, at 4k, and of the dead (None where none is dead)."""
    places = dead.nonzero().squeeze(1)
    if not len(places) or not config.aux:
        return [*latents_at(sae, inputs, selections), None]

    def strongest(pre_acts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, at = top_k(pre_acts[:, places], min(config.aux_k, len(places)))
        row = torch.arange(len(values))[:, None].expand_as(values)
        kept = values > 0
        return row[kept], places[at[kept]], values[kept]

    return list(latents_at(sae, inputs, [*selections, strongest]))


def _aux(sae: SAE, inputs: Tensor, recons: Tensor, revived: Any) -> Tensor:
    """Share of the error that dead latents do not recover; 0 where none is dead."""
    if revived is None:
        return inputs.new_zeros(())
    error = (inputs - recons).detach()
    baseline = (error - error.mean(0)).square().sum()
    if baseline == 0:
        return inputs.new_zeros(())
    recovered = sparse_decode(revived[1], sae.W_dec, None, revived[0])
    return squared_error(recovered, error) / baseline


def _matrix(pairs: Pairs, values: Tensor) -> Float[Tensor, "row d_sae"]:
    """Codes as a matrix, with their gradient."""
    empty = values.new_zeros(pairs.n_tokens, pairs.n_latents)
    return empty.index_put((pairs.tokens(), pairs.indices), values)


@torch.no_grad()
def _step(sae: SAE, optimizer: Adam, lr: float) -> None:
    """Move the weights; the encoder is the decoder transposed before and after."""
    gradients = {name: getattr(sae, name).grad for name in _TRAINED}
    if sae.W_enc.grad is not None:
        gradients["W_dec"] += sae.W_enc.grad.T
    optimizer.step(gradients, lr)
    sae.W_enc.copy_(sae.W_dec.T)
