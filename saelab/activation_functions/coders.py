"""Activation functions whose latents depend on each other through the decoder: iterative coders.

A plain activation function decides about a latent from pre-activations alone. These also know the
decoder directions, so that what one latent explains is not explained by another again. With tied
weights and no encoder bias the pre-activations are z = D (x - b_dec), the correlations that both
algorithms start from, and x itself is never needed:

    matching pursuit    k times: i = argmax z, f_i += z_i, z <- z - z_i D d_i
    sparse coding       f <- prox(f + step * (z - D D^T f)), many times

In training the latents are constants, as in classical dictionary learning: the decoder moves to
what reconstructs better from them, and the encoder is the decoder.
"""

import abc
import math
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.activation_functions.base import ActivationFunction, require_latents
from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import Pairs, entries
from saelab.kernels.encoding import Selected
from saelab.kernels.pursuit import matching_steps, merged
from saelab.proximal import PENALTIES, code_from_correlations, step_size

__all__ = ["Coder", "MatchingPursuit", "SparseCoding"]

FOLLOW = 0.1
"""How fast sparse coding's price follows the number of active latents, per training step."""


class Coder(ActivationFunction, abc.ABC):
    """What coders share: they hold on to the dictionary's decoder directions."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self._attached: list[Tensor] = []  # a list, so that torch does not count it as our own

    def attach(self, W_dec: Float[Tensor, "d_sae d_out"], *, tied: bool) -> None:
        """Read decoder directions from here on.

        Raises:
            ConfigError: The weights are not tied, so pre-activations are not correlations.
        """
        if not tied:
            raise ConfigError(
                f"{type(self).__name__} needs an encoder that is the decoder transposed: "
                "SAE(..., tied=True)."
            )
        self._attached = [W_dec]

    def attached(self) -> Float[Tensor, "d_sae d_out"]:
        """The decoder, as it is; without gradient.

        Raises:
            ConfigError: The function belongs to no dictionary yet.
        """
        if not self._attached:
            raise ConfigError(
                f"{type(self).__name__} is not part of a dictionary yet, so there is nothing to "
                "code with: SAE(d_in, d_sae, ..., tied=True)."
            )
        return self._attached[0].detach()

    def atoms(self) -> Float[Tensor, "d_sae d_out"]:
        """Decoder directions, of length 1 whatever units the weights are in; as `attached`."""
        W_dec = self.attached()
        return W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The codes, densely; without gradient."""
        row, latent, value = self.select(pre_acts.detach().reshape(-1, pre_acts.shape[-1]))
        dense = torch.zeros_like(pre_acts).reshape(-1, pre_acts.shape[-1])
        dense[row, latent] = value
        return dense.reshape(pre_acts.shape)

    def at_pairs(
        self,
        pre_acts: Float[Tensor, " pair"],
        indices: Int[Tensor, " pair"],  # noqa: ARG002
    ) -> Float[Tensor, " pair"]:
        """What `select` returned, which are latents already; constants in training."""
        return pre_acts.detach()


@final
class MatchingPursuit(Coder):
    """k times, let the latent that explains most of what is left take it.

        r = x - b_dec;  k times: i = argmax d_i r, f_i += d_i r, r <- r - (d_i r) d_i

    A latent can be chosen twice, and a token with nothing positive left stops: k is the largest
    number of latents. Latents of parents and children that overlap are told apart, which no single
    matrix product does.

    Args:
        k: Choices per token, at least 1.
        signed: Choose by size, and keep the sign.

    Source: Costa, Fel, Lubana, Tolooshams and Ba 2025, "From flat to hierarchical: extracting
    sparse representations with matching pursuit". There gradients also pass through the codes.
    """

    name = "matching_pursuit"

    def __init__(self, k: int, signed: bool = False) -> None:
        super().__init__(signed)
        if k < 1:
            raise ConfigError(f"MatchingPursuit(k={k}) keeps no latent; k must be at least 1.")
        self.k = k

    @property
    def target_l0(self) -> None:
        """Not known: k is only the largest number of latents."""
        return

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more latents than there are."""
        require_latents(self, self.k, d_sae)

    @torch.no_grad()
    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Row (ascending), latent and its value; the value stands where a pre-activation would."""
        atoms = self.atoms()
        codes = merged(*matching_steps(pre_acts, atoms, self.k, signed=self.signed), len(atoms))
        return codes.tokens, codes.indices, codes.values

    def to_json(self) -> dict[str, Any]:
        """Name, k and whether latents are signed."""
        return {"name": self.name, "k": self.k, "signed": self.signed}

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"k={self.k}"


@final
class SparseCoding(Coder):
    """Minimize the squared error plus a price on the latents, token by token.

        f = argmin 1/2 |x - b_dec - f D|^2 + sum_i penalty_lam(f_i)

    approximately, by a fixed number of proximal gradient steps (see `saelab.proximal`). During
    training the weight lam follows the number of active latents until that is k on average; at
    inference it is fixed, so hard tokens use more latents than easy ones.

    Args:
        penalty: "soft" (l1), "half", "log", "hard" (number of latents) or "cel0".
        k: Mean number of active latents aimed at.
        steps: Proximal gradient steps; each costs about as much as encoding and decoding.
        signed: Allow negative latents.

    Source: Olshausen and Field 1996; penalties compared by Rentzeperis, Calatroni, Perrinet and
    Prandi 2023, "Beyond l1 sparse coding in V1". Adapting lam is ours.
    """

    name = "sparse_coding"
    lam: Tensor

    def __init__(
        self, penalty: str = "hard", k: int | float = 32, steps: int = 30, signed: bool = False
    ) -> None:
        super().__init__(signed)
        if penalty not in PENALTIES:
            raise ConfigError(
                f"SparseCoding(penalty={penalty!r}): known are {', '.join(PENALTIES)}."
            )
        if not k > 0 or steps < 1:
            raise ConfigError(f"SparseCoding(k={k}, steps={steps}): both must be positive.")
        self.penalty, self.k, self.steps = penalty, float(k), steps
        # 0 until the first training batch has shown how large pre-activations are.
        self.register_buffer("lam", torch.zeros((), dtype=torch.float64))
        self._excess = 0.0

    @property
    def target_l0(self) -> None:
        """Not promised: the price is still on its way to k in a short run."""
        return

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """Refuse more latents than there are."""
        require_latents(self, self.k, d_sae)

    @torch.no_grad()
    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """Row (ascending), latent and its value; the value stands where a pre-activation would."""
        atoms = self.atoms()
        latents = code_from_correlations(
            pre_acts,
            atoms,
            self.penalty,
            float(self.lam),
            self.steps,
            step=step_size(atoms),
            signed=self.signed,
        )
        return entries(latents, latents != 0)

    @torch.no_grad()
    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The same, after the first batch has set a price to begin with."""
        if self.lam == 0:
            k = max(1, math.ceil(self.k))
            strongest = self.strength(pre_acts).topk(k, dim=1).values[:, -1]
            size = max(float(strongest.median()), 1e-6)
            self.lam.fill_(PENALTIES[self.penalty].lam_at(size))
        return self.select(pre_acts)

    def settle(
        self,
        pairs: Pairs,
        pre_acts: Float[Tensor, " pair"],  # noqa: ARG002
    ) -> Bool[Tensor, " pair"] | None:
        """Keep all of them, and note how many there are."""
        ratio = pairs.n_pairs / (self.k * max(pairs.n_tokens, 1))
        self._excess = math.log(min(max(ratio, 0.5), 2.0))

    @torch.no_grad()
    def constrain(self) -> None:
        """Raise the price if too many latents were active, lower it if too few."""
        self.lam *= math.exp(FOLLOW * PENALTIES[self.penalty].power * self._excess)
        self._excess = 0.0

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        settings = {"penalty": self.penalty, "k": self.k, "steps": self.steps}
        return {"name": self.name, **settings, "signed": self.signed}

    def file_tensors(self) -> dict[str, Tensor]:
        """The price."""
        return {"lam": self.lam}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back the price."""
        if set(tensors) != {"lam"}:
            raise CheckpointError(
                f"The weights file of a sparse coding dictionary holds lam besides the weights; "
                f"found {sorted(tensors)}."
            )
        self.lam.copy_(tensors["lam"])

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"penalty={self.penalty!r}, k={self.k:g}, steps={self.steps}, lam={self.lam:.3g}"
