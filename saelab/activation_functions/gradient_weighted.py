"""TopK that prefers latents the language model's loss depends on.

In training, with g the gradient of the loss at the hook point,

    score_i = z_i + beta * z_i * |g . W_dec[i]| / RMS        the k largest are kept, with value z_i

where RMS is the root mean square of g . W_dec[i] over the batch and all latents, so that beta means
the same whatever the loss is summed over. At inference there is no gradient: plain TopK.
"""

from collections.abc import Mapping
from typing import Any, final

from jaxtyping import Float, Int
from torch import Tensor

from saelab.activation_functions.base import ActivationFunction, picks
from saelab.activation_functions.per_token import TopK
from saelab.errors import ConfigError
from saelab.kernels import top_k
from saelab.kernels.encoding import Selected

__all__ = ["GradientTopK"]


@final
class GradientTopK(ActivationFunction):
    """TopK whose training selections weigh in how much the model's loss depends on a latent.

    Args:
        k: Latents per token, at least 1.
        beta: Weight of the gradient; 0 is TopK to the last bit, and then no gradient is read.
        gradient: Name of the gradient in the store, such as "blocks.6.hook_resid_pre.grad".

    Source: Olmo, Wilson, Forsey, Hepner, Howe and Wingate 2024, "Features that make a difference:
    leveraging gradients for improved dictionary learning". The score here is the additive form;
    dividing by the RMS is ours.

    >>> import torch
    >>> GradientTopK(1, beta=0.0)(torch.tensor([3.0, 5.0, -1.0]))
    tensor([0., 5., 0.])
    """

    name = "gradienttopk"

    def __init__(self, k: int, beta: int | float = 1.0, gradient: str | None = None) -> None:
        super().__init__()
        if not beta >= 0:
            raise ConfigError(f"GradientTopK(beta={beta}): the weight must be 0 or more.")
        if beta > 0 and gradient is None:
            raise ConfigError(
                f"GradientTopK(beta={beta}) needs the name of the gradient in the store: "
                "gradient='<hook point>.grad', harvested with the activations."
            )
        self.topk, self.beta, self.gradient = TopK(k), float(beta), gradient
        self.reads = () if gradient is None or not beta else (gradient,)
        self._gradients: Tensor | None = None
        self._W_dec: Tensor | None = None
        self._factor, self._row = 0.0, 0

    @property
    def k(self) -> int:
        """Latents per token."""
        return self.topk.k

    @property
    def target_l0(self) -> float:
        """k."""
        return self.topk.target_l0

    def setup(self, d_in: int, d_sae: int) -> None:
        """Refuse more latents than there are."""
        self.topk.setup(d_in, d_sae)

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = ReLU(TopK_k(z))."""
        return self.topk.forward(pre_acts)

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The k largest of each row that are positive."""
        return self.topk.select(pre_acts)

    def at_pairs(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """f = max(z, 0)."""
        return self.topk.at_pairs(pre_acts, indices)

    def begin_step(self, progress: float, extra: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """Take the gradients of this step's rows."""
        self._gradients = extra[self.reads[0]].detach() if self.reads else None

    def prepare(
        self,
        inputs: Float[Tensor, "token d_in"],  # noqa: ARG002
        W_dec: Float[Tensor, "d_sae d_out"],
    ) -> None:
        """Note the directions; the chunks start at row 0."""
        self._W_dec, self._row = W_dec.detach(), 0

    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The k of largest score of each row that are positive.

        Raises:
            ConfigError: The step's gradients are missing, or are those of other rows.
        """
        if not self.beta:
            return self.select(pre_acts)
        gradients, W_dec = self._gradients, self._W_dec
        if gradients is None or W_dec is None or self._row + len(pre_acts) > len(gradients):
            raise ConfigError(
                f"A training step of {self} needs the gradient of every row; "
                f"{0 if gradients is None else len(gradients)} were given. Pass them to begin_step."
            )
        if self._row == 0:
            self._factor = self.beta / max(_rms(gradients, W_dec), 1e-30)
        score = gradients[self._row : self._row + len(pre_acts)] @ W_dec.T
        self._row += len(pre_acts)
        score.abs_().mul_(self._factor).add_(1).mul_(pre_acts)
        return picks(pre_acts, *top_k(score, self.k))

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "k": self.k, "beta": self.beta, "gradient": self.gradient}

    def saelens(self) -> tuple[str, dict[str, Any]] | None:
        """SAELens's topk: what inference computes."""
        return self.topk.saelens()

    def extra_repr(self) -> str:
        """Shown by print; the TopK inside is shown below it."""
        return f"beta={self.beta:g}, gradient={self.gradient!r}"


def _rms(gradients: Float[Tensor, "token d"], W_dec: Float[Tensor, "latent d"]) -> float:
    """Root mean square of gradients @ W_dec.T, from two d x d products instead of that matrix."""
    total = ((gradients.T @ gradients) * (W_dec.T @ W_dec)).double().sum().clamp(min=0)
    return float((total / (len(gradients) * len(W_dec))).sqrt())
