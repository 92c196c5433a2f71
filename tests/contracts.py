"""The objects that every promise in tests/test_activation_functions.py and test_sae.py runs on."""

from saelab.activation_functions import ActivationFunction, ReLU, TopK


def activation_functions() -> list[ActivationFunction]:
    """One of each, for dictionaries of 12 latents or more."""
    return [ReLU(), TopK(3)]
