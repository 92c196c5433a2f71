"""The objective of finetuning, in the form that the training loop's parts understand."""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import JumpReLU, ReLU
from saelab.errors import ConfigError, DataError
from saelab.finetuning.config import FinetuneConfig
from saelab.finetuning.losses import CleanPass, balanced, spliced_pass
from saelab.models import LanguageModel
from saelab.objectives import Step, TargetL0, Term
from saelab.sae import SAE

__all__ = ["SplicedTerm", "sparsity_terms"]


@final
class SplicedTerm(Term):
    """The objective of finetuning, as a term: it runs the model with the reconstruction in it."""

    name = "spliced"

    def __init__(self, model: LanguageModel, config: FinetuneConfig) -> None:
        self._model, self._config = model, config
        self.clean: CleanPass | None = None
        """The pass that the next call compares with."""
        self.parts: dict[str, float] = {}
        """Every loss of the last call, minimized or not."""

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """Run the model, and weigh what changed."""
        if self.clean is None:
            raise DataError("There is no clean pass to compare with.")
        recons = step.forward.recons / step.sae.normalization.scale_out
        spliced = spliced_pass(self._model, self.clean, recons.to(self._model.device))
        error = (step.targets - step.forward.recons).square().sum()
        mse = error / (len(step.targets) * step.variance)
        losses = {"mse": mse.to(self._model.device), "kl": spliced.kl(), "ce": spliced.ce()}
        if self._config.downstream:
            losses["downstream"] = spliced.downstream()
        self.parts = {name: loss.item() for name, loss in losses.items()}
        names = self._config.objective.split("_")  # kl_mse: the second as large as the first
        chosen = [losses[name] for name in names]
        return chosen[0] if len(chosen) == 1 else balanced(chosen[1], chosen[0])

    def to_json(self) -> dict[str, Any]:
        """What is minimized."""
        return {"name": self.name, "objective": self._config.objective}


def sparsity_terms(sae: SAE, l0: float) -> tuple[Term, ...]:
    """What keeps a dictionary at the L0 it has, where its family's rule does not.

    Raises:
        ConfigError: Only the penalty it was trained with would.
    """
    if isinstance(sae.activation, JumpReLU):
        return (TargetL0(target=l0),)
    if isinstance(sae.activation, ReLU):
        raise ConfigError(
            "Nothing limits how many latents of a ReLU dictionary fire while it is finetuned: pass "
            "the penalty it was trained with, such as terms=(saelab.objectives.L1(),)."
        )
    return ()
