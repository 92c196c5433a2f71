"""How long are decoder directions at the start, and can they be given norm 1 at the end?

Where lengths are learned, a latent's size alone says little: f_i times |W_dec[i]| is what counts.
Folding moves the lengths into the latents and changes no reconstruction.
"""

import torch

from saelab.activation_functions import Gated, JumpReLU, ReLU
from saelab.errors import ConfigError
from saelab.sae import SAE

__all__ = ["fold_norms", "start_directions"]


@torch.no_grad()
def start_directions(sae: SAE, length: float, encoder: float = 1.0) -> None:
    """Give every decoder direction a length, and the encoder its transpose.

    Args:
        sae: Changed in place; an autoencoder.
        length: Norm of each decoder direction.
        encoder: The encoder is the decoder transposed, times this.

    Raises:
        ConfigError: A length is not positive, or the dictionary is a transcoder.

    >>> sae = SAE(4, 8)
    >>> start_directions(sae, 0.5)
    >>> bool((sae.W_dec.norm(dim=1) - 0.5).abs().max() < 1e-6), torch.equal(sae.W_enc, sae.W_dec.T)
    (True, True)
    """
    if not (length > 0 and encoder > 0):
        raise ConfigError(
            f"start_directions(length={length}, encoder={encoder}): both must be positive."
        )
    if sae.is_transcoder:
        raise ConfigError(
            "start_directions ties the encoder to the decoder, and this dictionary is a "
            "transcoder: what it reads and what it writes have nothing to do with each other."
        )
    sae.W_dec.mul_(length / sae.W_dec.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(encoder * sae.W_dec.T)


@torch.no_grad()
def fold_norms(sae: SAE) -> None:
    """Make every decoder direction one of norm 1 and its latent as many times larger.

        f_i <- f_i |W_dec[i]|,   W_dec[i] <- W_dec[i] / |W_dec[i]|

    so reconstructions stay the same but for rounding. Thresholds are latents' sizes and grow with
    them.

    Args:
        sae: Changed in place.

    Raises:
        ConfigError: The activation function compares latents with each other, so that scaling them
            would change which are selected, or a direction is zero.
    """
    activation = sae.activation
    if not isinstance(activation, ReLU | JumpReLU | Gated):
        raise ConfigError(
            f"{activation} selects latents by comparing them, so folding lengths into them would "
            "change which are selected. Only ReLU, JumpReLU and Gated dictionaries can be folded."
        )
    lengths = sae.W_dec.norm(dim=1)
    if not (lengths > 0).all():
        raise ConfigError("A decoder direction is zero and has no norm to fold.")
    sae.W_dec.div_(lengths.unsqueeze(1))
    sae.W_enc.mul_(lengths)
    sae.b_enc.mul_(lengths)
    if isinstance(activation, JumpReLU):
        activation.threshold.mul_(lengths)
    if isinstance(activation, Gated):
        activation.offset.mul_(lengths)
        activation.log_scale.add_(lengths.log())
