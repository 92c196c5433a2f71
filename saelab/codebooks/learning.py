"""Which codes let a model go on doing what it does? Trained with the model running on them.

    loss = cross-entropy of the next token, of the model with its codebooks inserted
         + mse * sum over codebooks of mean |r - h|^2 / mean |h - mean h|^2

The gradient of the first reaches the codes of every codebook, through later ones straight through.
Codes that no token of the last passes turned on move to activations that are reconstructed worst.

Source: Tamkin, Taufeeque and Goodman 2023, and their code: the first term alone is its "base", both
are its "aeloss". There the model's own weights are trained along, at a tenth of the rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.codebooks.inserting import Bottleneck
from saelab.errors import ConfigError, CorpusError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.steering.forcing import codes_of

__all__ = ["CodebookConfig", "learn_codes"]


@final
@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """How codes are learned."""

    steps: int = 200
    """Updates."""
    rows: int = 8
    """Rows of tokens per update."""
    lr: float = 5e-3
    """Of Adam, in normalized units; falls to 0 along a line."""
    mse: float = 1.0
    """Weight of the reconstruction; 0 for the model's loss alone."""
    replace_every: int = 20
    """Updates between two occasions on which unused codes move; 0 for never."""
    seed: int = 0
    """Of the order of the rows."""

    def __post_init__(self) -> None:
        if min(self.steps, self.rows) < 1 or not self.lr > 0 or self.mse < 0:
            raise ConfigError(
                f"CodebookConfig(steps={self.steps}, rows={self.rows}, lr={self.lr}, "
                f"mse={self.mse}): steps, rows and lr must be positive, mse not negative."
            )
        if self.replace_every < 0:
            raise ConfigError(f"replace_every={self.replace_every} must not be negative.")


def learn_codes(
    model: LanguageModel,
    codebooks: Sequence[SAE],
    tokens: Int[Tensor, "row pos"],
    config: CodebookConfig | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[float]:
    """Train codebooks in place, all at once, by the model's loss with them inserted.

    Args:
        model: Frozen.
        codebooks: Of different hook points, such as `codebook_for` makes.
        tokens: Rows that begin as the model's rows do.
        config: The settings.
        progress: Called with (updates done, updates).

    Returns:
        The cross-entropy of every update, nats per token.

    Raises:
        ConfigError: There is no codebook, a dictionary is none, or two are of one hook point.
        CorpusError: There is no row, or rows have fewer than two tokens.
    """
    config = config or CodebookConfig()
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] < 2:
        raise CorpusError(f"Rows of two tokens or more are needed; found {list(tokens.shape)}.")
    parts = _bottlenecks(model, codebooks)
    # The encoder is the decoder: codes and the point they are counted from are all there is.
    weights = [one for part in parts.values() for one in _weights(part.codebook)]
    optimizer = torch.optim.Adam(weights, lr=config.lr)
    used = [torch.zeros(part.codebook.d_sae, dtype=torch.bool) for part in parts.values()]
    generator = torch.Generator().manual_seed(config.seed)
    losses: list[float] = []
    for step in range(config.steps):
        some = tokens[torch.randint(len(tokens), (config.rows,), generator=generator)]
        with model.editing(parts), torch.enable_grad():
            logits, _ = model.whole_pass(some)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), some[:, 1:].flatten().to(logits.device)
        )
        losses.append(float(loss.detach()))
        total = loss + config.mse * sum(_missed(part) for part in parts.values())
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.zeros_like(weight) if gradient is None else gradient
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        optimizer.step()
        _after(list(parts.values()), used, step + 1, config)
        if progress is not None:
            progress(step + 1, config.steps)
    for weight in weights:
        weight.grad = None
    return losses


def _bottlenecks(model: LanguageModel, codebooks: Sequence[SAE]) -> dict[str, Bottleneck]:
    if not codebooks:
        raise ConfigError("learn_codes() was given no codebook.")
    first = 0 if model.bos_token_id is None else 1
    found: dict[str, Bottleneck] = {}
    for codebook in codebooks:
        codes_of(codebook)
        if codebook.hook is None or codebook.hook in found:
            raise ConfigError(
                f"Codebooks need different hook points, one each; found {codebook.hook!r}."
            )
        require_same_model(codebook, model.identity.to_json())
        found[codebook.hook] = Bottleneck(codebook, first)
    return found


def _weights(codebook: SAE) -> tuple[Tensor, Tensor]:
    return codebook.W_dec, codebook.b_dec


def _missed(part: Bottleneck) -> Tensor:
    """Share of the variance that the reconstruction of the last pass misses."""
    if part.read is None or part.recons is None:
        raise ConfigError(f"The model never reached {part.codebook.hook}.")
    h = part.read.flatten(0, 1).float()
    spread = (h - h.mean(0)).square().sum().clamp_min(1e-12)
    return (part.recons.flatten(0, 1).float() - h).square().sum() / spread


@torch.no_grad()
def _after(
    parts: Sequence[Bottleneck], used: Sequence[Tensor], done: int, config: CodebookConfig
) -> None:
    """Keep encoders equal to decoders, and move codes that were on nowhere for a while."""
    for part, seen in zip(parts, used, strict=True):
        codebook = part.codebook
        codebook.W_enc.copy_(codebook.W_dec.T)
        if part.read is None or part.recons is None:
            continue
        h = part.read.flatten(0, 1)
        seen[codebook.encode(h).indices.long().cpu()] = True
        if config.replace_every == 0 or done % config.replace_every or done == config.steps:
            continue
        unused = (~seen).nonzero().flatten().to(h.device)
        worst = (part.recons.flatten(0, 1) - h).square().sum(1).argsort(descending=True)
        worst = worst[: len(unused)]
        moved = h[worst] * codebook.normalization.scale_in - codebook.b_dec
        codebook.W_dec[unused[: len(worst)]] = moved.to(codebook.dtype)
        codebook.W_enc.copy_(codebook.W_dec.T)
        seen.zero_()
