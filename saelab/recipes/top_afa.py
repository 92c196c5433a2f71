"""top-AFA: each token keeps as many latents as make its code as long as its activation.

    k(x) = argmin_j | sqrt(sum of the j largest (f_i |W_dec[i]|)^2) - |x - b_dec| |,  f = ReLU(z)
    loss = |x - x_hat|^2 / variance + AFA (|f| against |x - b_dec|) + 1/32 AuxK

Lee, Davies, Canby, Hockenmaier 2025, "Evaluating and designing sparse autoencoders by
approximating quasi-orthogonality". There is no k to choose; the weight of the AFA term decides
instead, and where directions are not nearly orthogonal the code becomes dense. Different: inputs
are scaled as a whole, b_enc is trained, and the AFA term compares with the centred activation, as
the selection does. The paper's weight lambda is lambda * d_in here.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import NormMatching
from saelab.objectives import AFA, AuxK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["TopAFARecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class TopAFARecipe(Recipe):
    """A top-AFA dictionary."""

    afa: float = 4.0
    """Weight of the AFA term."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> NormMatching:
        """As many latents as match the activation's length."""
        return NormMatching()

    def terms(self) -> tuple[Reconstruction, AFA, AuxK]:
        """Squared error, AFA, and AuxK."""
        return Reconstruction(), AFA(coefficient=self.afa), AuxK(coefficient=self.auxk)
