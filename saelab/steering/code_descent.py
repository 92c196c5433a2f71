"""How is a code moved to where the codes of another kind of text lie? By gradient descent on it.

With f = encode(h), the prototype c of the wanted kind (the mean code of some texts of that kind)
and S the latents in which that kind differs most from the others, each token's own code walks

    z_0 = f,    z <- g( z - rate * gradient of L at z ),    T times
    L = |(z - c)_S|^2 + stay |z - f|^2                                     "distance"
    L = -log softmax_kind(-|(z - c_kind)_S|^2 / temperature) + stay |z - f|^2    "contrast"

and h becomes h + D (z_T - f): what the dictionary misses stays. g keeps z a code, as in `PushCode`.
Unlike a push, the step depends on the token: a token that is there already does not move.

Any hook point will do. On queries (the output of `model.layers.L.self_attn.q_proj`: all heads side
by side, before the rotary positions) only where a head looks changes, never what it can read: its
output stays a weighted mean of the same values.

Source: the idea, of steering query representations by gradient-based optimization of their sparse
codes towards samples of a class, is that of "Steered generation via gradient descent on sparse
features"; losses and settings here are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.steering.code_push import check_keep, keep_code
from saelab.steering.contrasts import text_activations
from saelab.steering.interventions import DictionaryEdit

__all__ = ["DescendCode", "DescentConfig", "Prototypes", "prototypes"]


@final
@dataclass(frozen=True, kw_only=True)
class DescentConfig:
    """How far codes walk, and towards what."""

    steps: int = 10
    """T; 0 changes nothing."""
    rate: float = 0.1
    """Length of a step, as a share of the gradient; below 1 / (1 + stay) the distance falls."""
    stay: float = 0.1
    """Weight of staying near the token's own code."""
    loss: str = "distance"
    """Come close to the prototype ("distance"), or be nearer to it than to the others
    ("contrast")."""
    temperature: float = 1.0
    """Of the contrast, in squared units of the latents."""
    n_latents: int | None = None
    """Size of S; None for all latents."""
    keep: str = "select"
    """g: "relu", "select" or "none"."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rate < 0 or self.stay < 0 or not self.temperature > 0:
            raise ConfigError(
                f"DescentConfig(steps={self.steps}, rate={self.rate}, stay={self.stay}, "
                f"temperature={self.temperature}): none negative, and a positive temperature."
            )
        if self.loss not in ("distance", "contrast"):
            raise ConfigError(f"loss={self.loss!r} must be 'distance' or 'contrast'.")
        if self.n_latents is not None and self.n_latents < 1:
            raise ConfigError(f"n_latents={self.n_latents} must be at least 1, or None for all.")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Prototypes:
    """Mean codes of several kinds of text."""

    names: tuple[str, ...]
    """The kinds."""
    codes: Float[Tensor, "kind d_sae"]
    """The mean code of each, in latents' own units."""

    def __post_init__(self) -> None:
        if len(self.names) < 2 or not len(set(self.names)) == len(self.names) == len(self.codes):
            raise ConfigError(
                f"Prototypes need at least two kinds, named differently, and a code of each; found "
                f"{list(self.names)} and {len(self.codes)} codes."
            )

    def place(self, name: str) -> int:
        """The row of a kind.

        Raises:
            ConfigError: There is no such kind.
        """
        if name not in self.names:
            raise ConfigError(f"There is no kind {name!r} among {', '.join(self.names)}.")
        return self.names.index(name)

    def telling(self, name: str, n: int | None = None) -> Int[Tensor, " latent"]:
        """The latents in which a kind differs most from the mean of the others; all if n is None.

        >>> pair = Prototypes(names=("a", "b"), codes=torch.tensor([[1.0, 0, 5], [1.0, 2, 1]]))
        >>> pair.telling("a", 2).tolist()
        [2, 1]
        """
        own = self.place(name)
        others = [row for row in range(len(self.names)) if row != own]
        gaps = (self.codes[own] - self.codes[others].mean(0)).abs()
        return gaps.argsort(descending=True, stable=True)[:n]

    def nearest(self, codes: Float[Tensor, "token d_sae"]) -> Int[Tensor, " token"]:
        """Which prototype each code is nearest to."""
        return torch.cdist(codes.float(), self.codes.to(codes.device)).argmin(1)


def prototypes(
    model: LanguageModel,
    sae: SAE,
    texts: Mapping[str, Sequence[str]],
    *,
    tokens: str = "all",
) -> Prototypes:
    """The mean code of each kind of text, every token counting once.

    Prompts of one length and form make prototypes that differ in the kind and in nothing else.

    Args:
        model: Reads the texts.
        sae: A dictionary of one of its hook points.
        texts: Kind -> texts of that kind.
        tokens: "all" tokens of each text, or its "last" one.

    Raises:
        ConfigError: There are fewer than two kinds, or the dictionary names no hook point.
        CorpusError: A text is empty or too long, or a kind has none.
    """
    if sae.hook is None:
        raise ConfigError("The dictionary does not say which hook point it reads: set sae.hook.")
    rows = []
    for some in texts.values():
        codes = sae.encode(
            torch.cat(text_activations(model, sae.hook, some, tokens=tokens)).to(sae.device)
        )
        total = torch.zeros(sae.d_sae, dtype=torch.float64, device=sae.device)
        total.index_add_(0, codes.indices.long(), codes.values.double())
        rows.append((total / max(1, codes.n_tokens)).float().cpu())
    return Prototypes(names=tuple(texts), codes=torch.stack(rows) if rows else torch.zeros(0, 0))


@final
@dataclass(frozen=True, eq=False)
class DescendCode(DictionaryEdit):
    """Walk each token's code towards the prototype of one kind of text; the error stays."""

    sae: SAE
    prototypes: Prototypes
    """Mean codes of the kinds."""
    target: str
    """The kind to walk to."""
    config: DescentConfig = field(default_factory=DescentConfig)
    """How far."""

    kind = "descend_code"

    def __post_init__(self) -> None:
        self.prototypes.place(self.target)
        check_keep(self.sae, self.config.keep)
        if self.prototypes.codes.shape[1] != self.sae.d_sae:
            raise ShapeError(
                f"The prototypes have {self.prototypes.codes.shape[1]} latents; the dictionary has "
                f"d_sae={self.sae.d_sae}."
            )

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """h + D (z_T - f)."""
        own = self.sae.encode(read).dense().float()
        directions = self.sae.W_dec.detach().float() / self.sae.normalization.scale_out
        amount = (self.walked(own) - own) @ directions
        return (written.float() + amount.to(written.device)).to(written.dtype)

    def walked(self, own: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        """Where codes arrive."""
        code = own
        for _ in range(self.config.steps):
            code = code - self.config.rate * self._gradient(code, own)
            code = keep_code(self.sae, code, self.config.keep)
        return code

    def losses(
        self, code: Float[Tensor, "token d_sae"], own: Float[Tensor, "token d_sae"]
    ) -> Float[Tensor, " token"]:
        """L of every token at some codes, at least 0, in squared units of the latents."""
        stayed = self.config.stay * (code - own).square().sum(1)
        squares = self._squares(code)
        wanted = self.prototypes.place(self.target)
        if self.config.loss == "distance":
            return squares[:, wanted] + stayed
        return -(-squares / self.config.temperature).log_softmax(1)[:, wanted] + stayed

    def to_json(self) -> dict[str, Any]:
        """Kind, target, names of the kinds and settings; the prototypes are kept beside."""
        names = list(self.prototypes.names)
        return {"kind": self.kind, "target": self.target, "kinds": names, **asdict(self.config)}

    def _mask(self) -> Float[Tensor, " d_sae"]:
        mask = torch.zeros(self.sae.d_sae, device=self.sae.device)
        mask[self.prototypes.telling(self.target, self.config.n_latents).to(mask.device)] = 1
        return mask

    def _squares(self, code: Tensor) -> Float[Tensor, "token kind"]:
        centers, mask = self.prototypes.codes.to(code.device), self._mask().to(code.device)
        return torch.stack([((code - one) * mask).square().sum(1) for one in centers], dim=1)

    def _gradient(self, code: Tensor, own: Tensor) -> Tensor:
        centers, mask = self.prototypes.codes.to(code.device), self._mask().to(code.device)
        center = centers[self.prototypes.place(self.target)]
        stay = 2 * self.config.stay * (code - own)
        if self.config.loss == "distance":
            return 2 * (code - center) * mask + stay
        # of -log softmax: the wanted center's pull, less the mean pull of all of them
        chance = (-self._squares(code) / self.config.temperature).softmax(1)
        return 2 * (chance @ centers - center) * mask / self.config.temperature + stay
