"""Are codes as long as what they stand for? The norms behind quasi-orthogonality.

With f_i |W_dec[i]| for every latent, and |b_dec| after them, as one vector v of F + 1 entries,

    |recons|^2 = |v|^2 + sum over i != j of v_i v_j cos_ij,  |that sum| <= eps ((sum |v|)^2 - |v|^2)

with eps the largest |cosine| between two directions. If the reconstruction were exact, the smallest
eps that could explain the lengths of a token would be at least

    epsilon = | |x|^2 - |v|^2 | / ((n - 1) |v|^2)

because (sum |v|)^2 <= n |v|^2 for n entries that are not zero. The published lower bound puts F - 1
for n - 1, which says nothing when F is large; with the active entries it does.

Source: Lee et al. 2025, "Evaluating and designing sparse autoencoders by approximating
quasi-orthogonality": the bound is epsilon_LBO there, the figure the ZF plot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ShapeError
from saelab.plots import template
from saelab.sae import SAE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["NormGeometry", "largest_cosine", "length_gap_bound", "norm_geometry", "zf_figure"]

BANDS = (0.25, 0.5, 1.0)
"""Values of epsilon * (F - 1) that the figure draws bands for."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class NormGeometry:
    """Lengths of activations and of their codes, token by token."""

    input_norms: Float[Tensor, " token"]
    """|x|, in the model's units."""
    code_norms: Float[Tensor, " token"]
    """|v|, in the model's units."""
    epsilon: Float[Tensor, " token"]
    """The published lower bound, with F - 1; 0 or more."""
    epsilon_active: Float[Tensor, " token"]
    """The same with the number of active entries of v less one, at least 1."""
    d_sae: int
    """F."""

    def describe(self) -> str:
        """One sentence."""
        ratio = self.code_norms / self.input_norms
        low, middle, high = ratio.quantile(ratio.new_tensor([0.1, 0.5, 0.9])).tolist()
        return (
            f"A code is {middle:.2f} times as long as its activation (10 to 90 %: {low:.2f} to "
            f"{high:.2f}); the median lower bound on epsilon is {self.epsilon.median():.2g} over "
            f"all latents and {self.epsilon_active.median():.2g} over the active ones."
        )


@torch.no_grad()
def norm_geometry(sae: SAE, x: Float[Tensor, "token d_in"]) -> NormGeometry:
    """Measure a dictionary on activations.

    Raises:
        ShapeError: It is a transcoder: what it reads has no reason to be as long as what it writes.

    >>> from saelab.activation_functions import ReLU
    >>> sae = SAE(4, 4, ReLU())
    >>> with torch.no_grad():
    ...     _ = sae.W_dec.copy_(torch.eye(4)), sae.W_enc.copy_(torch.eye(4))
    >>> norm_geometry(sae, torch.tensor([[3.0, 0.0, 4.0, 0.0]])).epsilon.item()
    0.0
    """
    if sae.is_transcoder:
        raise ShapeError(
            "norm_geometry compares an activation with its own code; this dictionary writes "
            f"{sae.hook_out}, not {sae.hook}. Use an autoencoder."
        )
    codes = sae.encode(x)
    scale = sae.normalization.scale_out
    lengths = torch.linalg.vector_norm(sae.W_dec, dim=1).double() / scale
    pieces = (codes.values.double() * lengths[codes.indices]).square()
    bias = float(torch.linalg.vector_norm(sae.b_dec.double())) / scale
    squares = pieces.new_zeros(len(codes)).index_add_(0, codes.tokens, pieces) + bias**2
    inputs = x.to(sae.device).double().square().sum(1)
    # A token without any entry has no bound: its code is 0 long.
    gap = torch.where(squares > 0, (inputs - squares).abs() / squares, torch.inf)
    others = (codes.l0() + int(bias > 0) - 1).clamp(min=1)
    return NormGeometry(
        input_norms=inputs.sqrt(),
        code_norms=squares.sqrt(),
        epsilon=gap / max(sae.d_sae - 1, 1),
        epsilon_active=gap / others,
        d_sae=sae.d_sae,
    )


def largest_cosine(directions: Float[Tensor, "latent d"], chunk: int = 1024) -> float:
    """Largest |cosine| between two different directions: the eps of quasi-orthogonality.

    >>> largest_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -3.0]]))  # doctest: +ELLIPSIS
    0.7071...
    """
    unit = torch.nn.functional.normalize(directions.detach().double(), dim=1)
    largest = 0.0
    for start in range(0, len(unit), chunk):
        cosines = (unit[start : start + chunk] @ unit.T).abs()
        cosines.diagonal(start).zero_()
        largest = max(largest, float(cosines.max()))
    return largest


def length_gap_bound(
    latents: Float[Tensor, "token latent"], directions: Float[Tensor, "latent d"]
) -> Float[Tensor, " token"]:
    """How far |sum of f_i W_dec[i]|^2 can be from the sum of its parts' squares.

        eps * ((sum |v|)^2 - |v|^2),  v_i = f_i |W_dec[i]|

    Args:
        latents: Codes, densely.
        directions: Decoder directions, of any length.
    """
    parts = (latents * directions.norm(dim=1)).abs().double()
    return largest_cosine(directions) * (parts.sum(1).square() - parts.square().sum(1))


def zf_figure(
    input_norms: Sequence[float], code_norms: Sequence[float], bands: Sequence[float] = BANDS
) -> "Figure":
    """The ZF plot: length of the code against length of the activation, a point a token.

    The line is equal length. Within the band of b, lengths differ by no more than
    epsilon * (F - 1) = b allows: y = x / sqrt(1 + b) to x / sqrt(1 - b) (no upper end at b = 1).

    Args:
        input_norms: |x| of each token.
        code_norms: |v| of each token.
        bands: Values of epsilon * (F - 1), from 0 to 1.
    """
    import plotly.graph_objects as go

    if len(input_norms) != len(code_norms) or not input_norms:
        raise ShapeError(
            f"The ZF plot needs one code per activation; found {len(input_norms)} and "
            f"{len(code_norms)} lengths."
        )
    right = 1.05 * max(input_norms)
    top = 1.05 * max(*code_norms, right)
    figure = go.Figure()
    for band in sorted(bands, reverse=True):
        low = right / (1 + band) ** 0.5
        # At 1 there is no upper end: the band fills everything above its lower line.
        above = [(right, right / (1 - band) ** 0.5)] if band < 1 else [(right, top), (0.0, top)]
        outline = [(0.0, 0.0), (right, low), *above]
        figure.add_scatter(
            x=[x for x, _ in outline],
            y=[y for _, y in outline],
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor="rgba(140, 149, 157, 0.16)",
            hoverinfo="skip",
        )
        figure.add_annotation(
            x=right, y=low, text=f"{band:g}", showarrow=False, xanchor="left", yanchor="middle"
        )
    figure.add_scatter(
        x=[0.0, right], y=[0.0, right], mode="lines", line={"dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=list(input_norms),
        y=list(code_norms),
        mode="markers",
        marker={"size": 4, "opacity": 0.5},
        hovertemplate="activation %{x:.2f}<br>code %{y:.2f}<extra></extra>",
    )
    figure.update_xaxes(title="length of the activation, |x|", range=[0, right])
    figure.update_yaxes(title="length of its code, |v| (with b_dec)", range=[0, top])
    figure.update_layout(template=template(), showlegend=False)
    return figure
