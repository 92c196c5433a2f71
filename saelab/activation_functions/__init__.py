"""Activation functions: from pre-activations to latents, densely and by pairs.

A family of dictionaries is an activation function times an objective. Each activation function
says what it computes (`forward`, on a dense matrix: the definition), which entries of a chunk of
pre-activations can be non-zero or receive gradient (`select`), and its value at those entries
(`at_pairs`). The last two are what training and encoding run; a contract test holds them equal to
the first.
"""

from typing import Any

from saelab.activation_functions.base import ActivationFunction, SelectAgain
from saelab.activation_functions.choice import Choice
from saelab.activation_functions.codebook import Codes
from saelab.activation_functions.coders import MatchingPursuit, SparseCoding
from saelab.activation_functions.gated import Gated
from saelab.activation_functions.gradient_weighted import GradientTopK
from saelab.activation_functions.jumprelu import JumpReLU
from saelab.activation_functions.norm_matching import NormMatching
from saelab.activation_functions.per_batch import BatchAbsTopK, BatchTopK
from saelab.activation_functions.per_token import AbsTopK, GroupMax, ReLU, TopK
from saelab.errors import CheckpointError

__all__ = [
    "ACTIVATION_FUNCTIONS",
    "CODERS",
    "AbsTopK",
    "ActivationFunction",
    "BatchAbsTopK",
    "BatchTopK",
    "Choice",
    "Codes",
    "Gated",
    "GradientTopK",
    "GroupMax",
    "JumpReLU",
    "MatchingPursuit",
    "NormMatching",
    "ReLU",
    "SelectAgain",
    "SparseCoding",
    "TopK",
    "from_json",
]

ACTIVATION_FUNCTIONS: dict[str, type[ActivationFunction]] = {
    "abstopk": AbsTopK,
    "batchabstopk": BatchAbsTopK,
    "batchtopk": BatchTopK,
    "choice": Choice,
    "gated": Gated,
    "gradienttopk": GradientTopK,
    "groupmax": GroupMax,
    "jumprelu": JumpReLU,
    "normmatching": NormMatching,
    "relu": ReLU,
    "topk": TopK,
}
"""Every activation function by its name on disk; a test asserts that none is missing."""

CODERS: dict[str, type[ActivationFunction]] = {
    "codes": Codes,
    "matching_pursuit": MatchingPursuit,
    "sparse_coding": SparseCoding,
}
"""Those that also know the decoder (see `coders`): their latents are no function of z alone."""


def from_json(settings: dict[str, Any]) -> ActivationFunction:
    """The activation function that `to_json` described.

    Raises:
        CheckpointError: The name or a setting is unknown, as in a file from a newer version.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    known = ACTIVATION_FUNCTIONS | CODERS
    if name not in known:
        raise CheckpointError(
            f"The dictionary's activation function is {name!r}; this version knows "
            f"{', '.join(known)}. It may come from a newer version of saelab."
        )
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise CheckpointError(f"The settings of {name!r} are not understood: {error}.") from None
