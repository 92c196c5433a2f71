"""What is a dictionary made of, whichever library wrote it?

    z = (x - b_dec [if pre_bias]) W_enc + b_enc
    f = activation(z)
    reconstruction = f W_dec + b_dec + x W_skip [if there]

Readers turn a peer's files into `Parts`, writers start from them. The functions below are the exact
algebra between conventions: each changes the tensors and leaves what is computed as it was.
"""

from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from saelab.activation_functions import ActivationFunction, GroupMax
from saelab.errors import FormatError, SaelabError
from saelab.sae import SAE

__all__ = [
    "Parts",
    "build",
    "gated_to_jumprelu",
    "parts_of",
    "rule_of",
    "thresholds_of",
    "with_decoder_norms_folded",
    "with_input_scale",
    "with_pre_bias",
    "without_pre_bias",
]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Tensors and settings of one dictionary, every scale folded in."""

    W_enc: Tensor
    """[d_in, d_sae]."""
    b_enc: Tensor
    """[d_sae]."""
    W_dec: Tensor
    """[d_sae, d_out]; row i is decoder direction i."""
    b_dec: Tensor
    """[d_out]."""
    activation: ActivationFunction
    """From pre-activations to latents."""
    pre_bias: bool
    """Whether b_dec is subtracted from the input."""
    threshold: Tensor | None = None
    """[d_sae], where the activation function has thresholds."""
    W_skip: Tensor | None = None
    """[d_in, d_out], where there is a linear path beside the latents."""
    hook: str | None = None
    """Hook point it reads; None where the files do not say."""
    hook_out: str | None = None
    """Hook point it writes, if another."""
    model: str | None = None
    """The model's name, as the files give it."""
    recorded: dict[str, float] = field(default_factory=dict)
    """l0 and explained_variance, where the files give them."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else the files say that someone may want to know."""


def build(parts: Parts, origin: str, metadata: dict[str, Any]) -> SAE:
    """The dictionary that the parts describe.

    Raises:
        FormatError: They contradict each other.
    """
    if parts.hook_out is not None or parts.W_dec.shape[1] != parts.W_enc.shape[0]:
        parts = without_pre_bias(parts)
    try:
        sae = SAE(
            parts.W_enc.shape[0],
            parts.W_enc.shape[1],
            parts.activation,
            hook=parts.hook,
            hook_out=parts.hook_out,
            d_out=parts.W_dec.shape[1],
            skip=parts.W_skip is not None,
            pre_bias=parts.pre_bias,
            dtype=parts.W_enc.dtype,
            metadata=metadata,
        )
        _copy_weights(parts, sae)
    except SaelabError as error:
        raise FormatError(f"{origin}: {error}") from None
    return sae


def _copy_weights(parts: Parts, sae: SAE) -> None:
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
    with torch.no_grad():
        for name in names:
            weight, parameter = getattr(parts, name), getattr(sae, name)
            if parameter is None:
                continue
            if weight.shape != parameter.shape or not bool(torch.isfinite(weight).all()):
                raise FormatError(
                    f"{name} has shape {tuple(weight.shape)} where {tuple(parameter.shape)} was "
                    "expected, or is not finite once scales are folded in."
                )
            parameter.copy_(weight)
    if parts.threshold is not None:
        # A latent below zero never leaves the peer's ReLU, so a threshold below zero acts as zero.
        sae.activation.load_file_tensors({"threshold": parts.threshold.clamp(min=0)})


def parts_of(sae: SAE) -> Parts:
    """The parts of a dictionary, in float32 unless it is float64."""
    folded = sae.folded()
    dtype = torch.float64 if sae.dtype == torch.float64 else torch.float32
    model = sae.metadata.get("model")
    weights = {
        name: getattr(folded, name).detach().cpu().to(dtype)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
        if getattr(folded, name) is not None
    }
    return Parts(
        **weights,
        activation=folded.activation,
        pre_bias=sae.pre_bias,
        hook=sae.hook,
        hook_out=sae.hook_out,
        model=model.get("name") if isinstance(model, dict) else None,
    )


def rule_of(activation: ActivationFunction) -> tuple[str, int]:
    """What an activation function does at inference, and its k (0 where it has none).

    Several train differently and end as the same rule: relu, jumprelu, topk, abstopk, groupmax;
    or its own name, where it is none of these.
    """
    if isinstance(activation, GroupMax):
        return "groupmax", activation.k
    name, settings = activation.saelens() or (activation.name, {})
    return ("relu" if name == "standard" else name), int(settings.get("k", 0))


def thresholds_of(parts: Parts) -> Tensor | None:
    """[d_sae] thresholds that make the activation function a JumpReLU; None if it is not one."""
    rule, _ = rule_of(parts.activation)
    if rule == "relu":
        return torch.zeros_like(parts.b_enc, dtype=torch.float32)
    if rule == "jumprelu":
        return parts.activation.file_tensors()["threshold"].detach().cpu().float()
    return None


def without_pre_bias(parts: Parts) -> Parts:
    """(x - b_dec) W_enc + b_enc = x W_enc + (b_enc - b_dec W_enc)."""
    if not parts.pre_bias:
        return parts
    return replace(parts, b_enc=_shifted(parts, -1), pre_bias=False)


def with_pre_bias(parts: Parts) -> Parts:
    """x W_enc + b_enc = (x - b_dec) W_enc + (b_enc + b_dec W_enc)."""
    if parts.pre_bias:
        return parts
    return replace(parts, b_enc=_shifted(parts, 1), pre_bias=True)


def _shifted(parts: Parts, sign: int) -> Tensor:
    # In double precision: the two terms may be large and nearly cancel.
    shift = parts.b_dec.double() @ parts.W_enc.double()
    return (parts.b_enc.double() + sign * shift).to(parts.b_enc.dtype)


def with_decoder_norms_folded(parts: Parts, origin: str) -> Parts:
    """Unit decoder rows; latents are multiplied by the norms the rows had.

    Exact for a rule that compares z_i |W_dec[i]|, which a plain z_i then is.

    Raises:
        FormatError: A row is zero, so its direction is unknown.
    """
    norms = parts.W_dec.norm(dim=1)
    if not bool((norms > 0).all()):
        raise FormatError(
            f"{origin}: {int((norms == 0).sum())} decoder rows are zero, so dividing by their "
            "norms, as the peer does, is undefined."
        )
    return replace(
        parts,
        W_enc=parts.W_enc * norms,
        b_enc=parts.b_enc * norms,
        W_dec=parts.W_dec / norms[:, None],
    )


def with_input_scale(parts: Parts, scale: float) -> Parts:
    """A dictionary of x * scale, as one of x; the reconstruction is divided by the scale."""
    return replace(
        parts,
        W_enc=parts.W_enc * scale,
        W_dec=parts.W_dec / scale,
        b_dec=parts.b_dec / scale,
    )


def gated_to_jumprelu(
    W_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor
) -> dict[str, Any]:
    """The gated encoder as a JumpReLU of one pre-activation.

        [u + b_gate > 0] ReLU(e^r u + b_mag) = z [z > theta]
        z = e^r u + b_mag, theta = ReLU(b_mag - e^r b_gate)

    Returns:
        W_enc, b_enc and threshold, by the names of `Parts`.

    Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse
    autoencoders", whose weight-tied gate is this JumpReLU.
    """
    gain = r_mag.exp()
    return {
        "W_enc": W_enc * gain,
        "b_enc": b_mag,
        "threshold": (b_mag - gain * b_gate).relu(),
    }
