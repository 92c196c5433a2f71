"""Does an imported dictionary do on real activations what its authors say it does?

A file that is read wrongly usually still has the right shape. What gives it away are L0 and the
explained variance on activations of the model it was trained on, beside the numbers its authors
recorded.
"""

from dataclasses import dataclass
from typing import final

import torch

from saelab.errors import ConfigError
from saelab.metrics import ReconstructionMetrics
from saelab.sae import SAE
from saelab.store import ActivationStore

__all__ = ["Check", "check"]

FAR_L0 = 0.25
"""Relative difference of L0 that two corpora do not explain."""
FAR_VARIANCE = 0.1
"""Difference of the explained variance that two corpora do not explain."""
BATCH = 2048


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """What was measured, beside what was recorded; None where nothing was."""

    n_tokens: int
    """Tokens measured."""
    l0: float
    """Mean number of latents active per token."""
    explained_variance: float | None
    """1 - FVU."""
    recorded_l0: float | None
    """The authors' number."""
    recorded_explained_variance: float | None
    """The authors' number; definitions differ between libraries by a few hundredths."""

    @property
    def doubts(self) -> list[str]:
        """What suggests that it was read wrongly, or is used on another model or hook point."""
        found = []
        if self.recorded_l0 and abs(self.l0 / self.recorded_l0 - 1) > FAR_L0:
            found.append(f"L0 is {self.l0:.1f} where {self.recorded_l0:.1f} was recorded")
        wanted, got = self.recorded_explained_variance, self.explained_variance
        if wanted is not None and got is not None and abs(got - wanted) > FAR_VARIANCE:
            found.append(f"the explained variance is {got:.3f} where {wanted:.3f} was recorded")
        elif got is not None and got < 0:
            found.append(f"the explained variance is {got:.3f}: worse than predicting the mean")
        return found


def check(sae: SAE, store: ActivationStore, n_tokens: int = 16_384) -> Check:
    """Run a dictionary on a sample of a store.

    Args:
        sae: The dictionary.
        store: Activations of the model it was trained on.
        n_tokens: How many to read; all if there are fewer.

    Returns:
        The numbers, beside what its files recorded.

    Raises:
        ConfigError: The store has not the hook points, or not the widths.
    """
    hook = store.hook if sae.hook is None else sae.hook
    hook_out = hook if sae.hook_out is None else sae.hook_out
    for name, width in ((hook, sae.d_in), (hook_out, sae.d_out)):
        if store.widths.get(name) != width:
            held = ", ".join(f"{other} ({wide})" for other, wide in store.widths.items())
            raise ConfigError(
                f"The dictionary needs {name}, {width} wide; the store holds {held}. If one of "
                "them is the same place, say so when importing: --hook NAME, --hook-out NAME."
            )
    wanted = min(n_tokens, store.n_tokens)
    metrics = ReconstructionMetrics()
    batches = store.batches(min(BATCH, wanted), hooks=list(dict.fromkeys((hook, hook_out))))
    with torch.no_grad():
        for batch in batches:
            x, y = batch.activations[hook], batch.activations[hook_out]
            codes = sae.encode(x)
            metrics.update(y, sae.decode(codes, x), codes)
            if metrics.n_tokens >= wanted:
                break
    result = metrics.result()
    recorded = sae.metadata.get("imported", {}).get("recorded", {})
    return Check(
        n_tokens=metrics.n_tokens,
        l0=result.l0 or 0.0,
        explained_variance=result.explained_variance,
        recorded_l0=recorded.get("l0"),
        recorded_explained_variance=recorded.get("explained_variance"),
    )
