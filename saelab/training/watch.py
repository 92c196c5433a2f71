"""Warnings while a run trains: what an experienced eye would notice in the curves."""

import statistics
import warnings
from typing import Any, final

from saelab.sae import SAE
from saelab.training.config import TrainConfig
from saelab.training.run_logs import RunLog

__all__ = ["Watch"]

DEAD_SHARE = 0.3
"""Above this share of dead latents the run is warned about."""
SPIKE = 2.0
"""A loss this many times the median of the last rows is a spike."""
L0_TOLERANCE = 0.1
"""Relative distance of L0 from its target that is worth saying."""


@final
class Watch:
    """Looks at each row of metrics and records an event, once per kind, when something is off."""

    def __init__(self, log: RunLog, sae: SAE, config: TrainConfig) -> None:
        self._log, self._sae, self._config = log, sae, config

    def look(self, row: dict[str, Any]) -> None:
        """Check one row."""
        if row["dead_share"] > DEAD_SHARE:
            self._say(
                "dead",
                row,
                f"{row['dead_share']:.0%} of the latents fired on none of the last "
                f"{self._config.dead_after:,} tokens. Try fewer latents, a lower learning rate, "
                "or more tokens.",
            )
        recent = [r["loss"] for r in self._log.metrics[-21:-1]]
        if len(recent) >= 10 and row["loss"] > SPIKE * statistics.median(recent):
            self._say(
                "spike",
                row,
                f"The loss jumped to {row['loss']:.3f} from a median of "
                f"{statistics.median(recent):.3f}. Try a lower learning rate or clip.",
            )
        target = self._sae.activation.target_l0
        if target is not None:
            off = abs(row["l0"] - target) / target
            if off > L0_TOLERANCE and row["tokens"] > self._config.warmup * self._config.tokens:
                self._say(
                    "l0",
                    row,
                    f"On average {row['l0']:.1f} latents are active where {target:g} are asked "
                    "for: many tokens have fewer positive pre-activations than that.",
                )

    def say(self, kind: str, step: int, message: str) -> None:
        """Record an event and warn, unless this kind has been recorded before."""
        if all(event["kind"] != kind for event in self._log.events):
            self._log.event({"step": step, "kind": kind, "message": message})
            warnings.warn(message, stacklevel=3)

    def _say(self, kind: str, row: dict[str, Any], message: str) -> None:
        self.say(kind, row["step"], message)
