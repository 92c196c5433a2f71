"""What does steering do, what does it cost, and would any other push have done the same?

For every direction and strength, with the edit h + length * v / |v| at every position but the
model's first token:

    1. each prompt is continued greedily; the concept is scored on what is written
    2. the unsteered model reads that text: its loss (fluency), how much of it the prompt explains
       (relevance), and the KL between both models' predictions
    3. held-out text is read by both models: rise of the cross-entropy, KL (side effects)

Directions are compared at equal length of push, in multiples of the mean |h|, and a random
direction and random latents are always measured with them: an effect that these have too is an
effect of pushing, not of the direction.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch

from saelab.errors import ConfigError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.steering.concepts import Concept, Words
from saelab.steering.contrasts import text_activations
from saelab.steering.directions import Direction, random_direction, random_latents
from saelab.steering.points import Kept, Setting
from saelab.steering.results import Curve, Measured, SteeringReport

__all__ = ["SteeringConfig", "mean_norm", "measure_steering"]


@final
@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """How steering is measured."""

    strengths: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    """Lengths of push, in multiples of the mean |h| at the hook point; negative pushes back."""
    max_new_tokens: int = 20
    """Tokens generated after each prompt."""
    random_directions: int = 1
    """Random directions measured for comparison, at least 1."""
    random_latents: int = 1
    """Random latents measured for comparison, where a dictionary is given."""
    seed: int = 0
    """Of the random directions and latents."""
    fluency_bars: tuple[float, float] = (0.5, 1.5)
    """Rises of the loss, in nats per token, up to which fluency is rated 2 and 1."""
    relevance_bars: tuple[float, float] = (0.25, 0.5)
    """Shares of the unsteered text's relevance from which relevance is rated 1 and 2."""

    def __post_init__(self) -> None:
        if not self.strengths or not all(math.isfinite(one) for one in self.strengths):
            raise ConfigError(f"strengths={self.strengths} must be finite, and at least one.")
        if len(set(self.strengths)) < len(self.strengths) or 0 in self.strengths:
            raise ConfigError(
                f"strengths={self.strengths} must differ from each other and from 0, which is "
                "always measured."
            )
        if self.max_new_tokens < 1 or self.random_directions < 1 or self.random_latents < 0:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens} and random_directions="
                f"{self.random_directions} must be at least 1, random_latents="
                f"{self.random_latents} at least 0. Without a control no effect means anything."
            )


def measure_steering(
    model: LanguageModel,
    directions: Sequence[Direction],
    *,
    prompts: Sequence[str],
    concept: Concept | Sequence[str],
    held_out: Sequence[str],
    sae: SAE | None = None,
    config: SteeringConfig | None = None,
    folder: str | Path | None = None,
    progress: Callable[..., None] | None = None,
) -> SteeringReport:
    """Sweep the strength of some directions, and of controls, on the same prompts and text.

    Args:
        model: The model.
        directions: What to compare: latents, differences in means, probes and so on.
        prompts: Continued under each push; even places choose the strength, odd ones report it.
        concept: What is wanted more of; a list of words means `Words`.
        held_out: Texts that have nothing to do with the concept, for side effects.
        sae: A dictionary; random latents of it are measured too.
        config: The settings.
        folder: Where finished points are kept: the same call goes on where it was stopped.
        progress: Called with (done, in all, what).

    Raises:
        ConfigError: Two directions share a name, or a direction is zero or of another width.
        CorpusError: A text is empty or too long for the model.
    """
    config = config or SteeringConfig()
    wanted = concept if isinstance(concept, Concept) else Words(words=tuple(concept))
    pushes = [*directions, *_controls(directions, sae, config)]
    _check_names(pushes)
    setting = Setting(model, prompts, wanted, held_out, config.max_new_tokens)
    norms = {one.hook: 0.0 for one in pushes}
    norms = {hook: mean_norm(model, hook, prompts) for hook in norms}
    kept = Kept(None if folder is None else Path(folder), setting.key())
    strengths = sorted(config.strengths)
    total = 1 + len(pushes) * len(strengths)

    def point(direction: Direction | None, strength: float) -> Measured:
        length = 0.0 if direction is None else strength * norms[direction.hook]
        found = kept.get(direction, strength)
        if found is None:
            found = setting.measured(direction, strength, length)
            kept.put(direction, strength, found)
        return found

    clean = point(None, 0.0)
    curves = []
    for place, one in enumerate(pushes):
        points = []
        for done, strength in enumerate(strengths, start=1 + place * len(strengths)):
            if progress is not None:
                progress(done, total, one.name)
            points.append(point(one, strength))
        curves.append(
            Curve(
                name=one.name,
                hook=one.hook,
                norm=one.norm,
                made=dict(one.made),
                control=one.is_control,
                points=tuple(points),
            )
        )
    if progress is not None:
        progress(total, total, "done")
    return SteeringReport(
        concept=wanted.to_json(),
        config=json.loads(json.dumps(asdict(config))),
        about={
            "model": model.identity.to_json(),
            "n_prompts": len(prompts),
            "n_held_out": len(held_out),
            "n_held_out_predictions": setting.n_predictions,
        },
        norms=norms,
        clean=clean,
        curves=tuple(curves),
    )


def mean_norm(model: LanguageModel, hook: str, texts: Sequence[str]) -> float:
    """Mean |h| at a hook point over the tokens of some texts, the model's first token left out."""
    lengths = [part.norm(dim=1) for part in text_activations(model, hook, texts)]
    return float(torch.cat(lengths).double().mean())


def _controls(
    directions: Sequence[Direction], sae: SAE | None, config: SteeringConfig
) -> list[Direction]:
    """Random directions with the shape of the first, at its hook point, and random latents."""
    if not directions:
        raise ConfigError("measure_steering() was given no direction.")
    found: list[Direction] = []
    for place in range(config.random_directions):
        one = random_direction(directions[0], config.seed + place)
        found.append(one)
    if sae is not None and config.random_latents:
        studied = [one.made["latent"] for one in directions if "latent" in one.made]
        found += random_latents(sae, config.random_latents, seed=config.seed, without=studied)
    return found


def _check_names(pushes: Sequence[Direction]) -> None:
    names = [one.name for one in pushes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"Several directions are called {twice[0]!r}. Give each a name of its own: "
            "dataclasses.replace(direction, name=...)."
        )
