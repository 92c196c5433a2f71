"""Can a domain be unlearned by holding its latents down, without harm to the rest?

Latents that fire on the text to forget and hardly on the text to retain are set to -m times their
sign wherever they fire; where they are silent, at position 0, and in what the dictionary does not
explain, nothing changes. Of all settings that keep the accuracy on what is retained, the one that
forgets most counts:

    score = 1 - min over settings with retained >= 0.99 retained_before of the accuracy on forget

No setting at all is one of the settings, so the score of a dictionary that can do nothing is
1 - the accuracy before.

Source: Farrell et al. 2024, Applying Sparse Autoencoders to Unlearn Knowledge; SAEBench.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.sparse_codes import SparseCodes
from saelab.steering.interventions import activations_of

__all__ = [
    "Setting",
    "Unlearning",
    "UnlearningConfig",
    "forgetting",
    "held_down",
    "latents_to_forget",
    "measure_unlearning",
]

Accuracies = Callable[[Sequence[int], float], tuple[float, float]]
"""Latents and strength -> accuracy on what is to be forgotten, and on what is retained."""


@final
@dataclass(frozen=True, kw_only=True)
class UnlearningConfig:
    """The settings that are tried."""

    retain_densities: tuple[float, ...] = (0.001, 0.01)
    """Latents must fire on a smaller share of the tokens to retain than this."""
    n_latents: tuple[int, ...] = (10, 20)
    """How many latents are held down."""
    strengths: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0)
    """m: how far they are held below zero."""
    retained: float = 0.99
    """Share of the accuracy before that must be retained."""


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting and what it did."""

    retain_density: float
    """Threshold of the choice."""
    latents: tuple[int, ...]
    """The latents held down."""
    strength: float
    """m."""
    forget: float
    """Accuracy on what is to be forgotten."""
    retain: float
    """Accuracy on what is to be retained."""
    allowed: bool
    """Whether enough is retained."""


@final
@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """All settings, and the best that is allowed."""

    score: float
    """1 - accuracy on what is to be forgotten, at the best allowed setting; higher is better."""
    forget_before: float
    """Accuracy on what is to be forgotten, before."""
    retain_before: float
    """Accuracy on what is retained, before."""
    best: Setting | None
    """The best allowed setting; None where none forgets anything."""
    settings: list[Setting]
    """Every setting tried."""


def latents_to_forget(
    forget: SparseCodes, retain: SparseCodes, n: int, retain_density: float
) -> list[int]:
    """Up to n latents that fire most on the forget tokens, of those rare on the retain tokens.

    A latent fires where it is not zero, whatever its sign. Latents that never fire on the tokens to
    forget are no candidates.
    """
    if forget.d_sae != retain.d_sae:
        raise ShapeError(f"Codes of two dictionaries: d_sae {forget.d_sae} and {retain.d_sae}.")
    if not forget.n_tokens or not retain.n_tokens:
        raise ConfigError("Both the text to forget and the text to retain need tokens.")
    fires = forget.firing_counts().double()
    rare = retain.firing_counts().double() / retain.n_tokens < retain_density
    ranked = torch.where(rare, fires, 0.0).sort(descending=True, stable=True)
    return [int(i) for i, count in zip(ranked.indices[:n], ranked.values[:n], strict=True) if count]


def held_down(
    sae: SAE, x: Float[Tensor, "token d"], latents: Sequence[int], strength: float
) -> Float[Tensor, "token d"]:
    """x with latents at -strength times their sign where they fire; all else, error too, stays.

    Args:
        sae: An autoencoder.
        x: Activations in the model's units.
        latents: Which.
        strength: m, in the latents' own units.
    """
    chosen: Int[Tensor, " latent"] = torch.tensor(list(latents), device=sae.device)
    own = activations_of(sae.encode(x), chosen)
    change = (-strength * own.sign() - own) * (own != 0)
    directions = sae.W_dec.detach()[chosen].float() / sae.normalization.scale_out
    return (x.float() + (change @ directions).to(x.device)).to(x.dtype)


@contextmanager
def forgetting(
    model: LanguageModel, sae: SAE, latents: Sequence[int], strength: float
) -> Iterator[None]:
    """Within the block, the model runs with those latents held down; position 0 is never edited.

    Raises:
        ConfigError: The dictionary names no hook point or is a transcoder.
        ModelError: It belongs to another model.
    """
    if sae.hook is None or sae.is_transcoder:
        raise ConfigError("Unlearning needs a dictionary that writes at the hook point it reads.")
    require_same_model(sae, model.identity.to_json())

    def edit(x: Tensor) -> Tensor:
        changed = x.clone()
        later = x[:, 1:]
        if len(latents) and later.numel():
            rows = held_down(sae, later.reshape(-1, x.shape[-1]), latents, strength)
            changed[:, 1:] = rows.reshape(later.shape)
        return changed

    with model.editing({sae.hook: edit}):
        yield


def measure_unlearning(
    forget: SparseCodes,
    retain: SparseCodes,
    accuracies: Accuracies,
    config: UnlearningConfig | None = None,
) -> Unlearning:
    """Try every setting, and take the best of those that retain enough.

    Args:
        forget: Codes of tokens of the domain to forget, for the choice of latents.
        retain: Codes of tokens of other text.
        accuracies: Measures a choice of latents at a strength, on questions of both kinds; called
            with no latents first.
        config: The settings that are tried.
    """
    config = config or UnlearningConfig()
    forget_before, retain_before = accuracies((), 0.0)
    settings = []
    for density in config.retain_densities:
        for n in config.n_latents:
            latents = tuple(latents_to_forget(forget, retain, n, density))
            for strength in config.strengths if latents else ():
                forgot, kept = accuracies(latents, strength)
                settings.append(
                    Setting(
                        retain_density=density,
                        latents=latents,
                        strength=strength,
                        forget=forgot,
                        retain=kept,
                        allowed=kept >= config.retained * retain_before,
                    )
                )
    # The constraint first, the minimum then: a setting that breaks the model forgets best.
    allowed = [one for one in settings if one.allowed and one.forget < forget_before]
    best = min(allowed, key=lambda one: one.forget, default=None)
    return Unlearning(
        score=1 - (forget_before if best is None else best.forget),
        forget_before=forget_before,
        retain_before=retain_before,
        best=best,
        settings=settings,
    )
