"""What training minimizes: a sum of named terms.

A family of dictionaries is an activation function times a list of terms:

    family         activation function   terms
    ReLU           ReLU()                Reconstruction(), L1(coefficient)
    TopK           TopK(k)               Reconstruction(), AuxK()
    multi-TopK     TopK(k)               Reconstruction(), MultiTopK(), AuxK()
    AbsTopK        AbsTopK(k)            Reconstruction(), AuxK()
    GroupMax       GroupMax(k)           Reconstruction(), AuxK()
    BatchTopK      BatchTopK(k)          Reconstruction(), AuxK()
    BatchAbsTopK   BatchAbsTopK(k)       Reconstruction(), AuxK()
    Matryoshka     BatchTopK(k)          Matryoshka(), AuxK()
    JumpReLU       JumpReLU()            Reconstruction(), TargetL0(l0)

Every term is scaled so that its size does not depend on the data's units: reconstruction is the
squared error over the variance of the data, measured once before training.
"""

from saelab.activation_functions import (
    AbsTopK,
    BatchAbsTopK,
    BatchTopK,
    GroupMax,
    JumpReLU,
    TopK,
)
from saelab.errors import ConfigError
from saelab.objectives.auxk import AuxK
from saelab.objectives.base import Step, Term
from saelab.objectives.reconstruction import Matryoshka, MultiTopK, Reconstruction
from saelab.objectives.sparsity import L1, TargetL0
from saelab.sae import SAE

__all__ = [
    "L1",
    "AuxK",
    "Matryoshka",
    "MultiTopK",
    "Reconstruction",
    "Step",
    "TargetL0",
    "Term",
    "default_terms",
]


def default_terms(sae: SAE) -> tuple[Term, ...]:
    """The terms of the family that the dictionary's activation function belongs to.

    Raises:
        ConfigError: The activation function alone does not say what to minimize.
    """
    if isinstance(sae.activation, JumpReLU):
        return Reconstruction(), TargetL0()
    if isinstance(sae.activation, TopK | AbsTopK | GroupMax | BatchTopK | BatchAbsTopK):
        return Reconstruction(), AuxK()
    raise ConfigError(
        f"{sae.activation} has no default objective: pass terms=..., for example "
        "(saelab.objectives.Reconstruction(), saelab.objectives.L1(coefficient=5.0))."
    )
