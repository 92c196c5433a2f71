"""What training minimizes: a sum of named terms.

A family of dictionaries is an activation function times a list of terms:

    family         activation function   terms
    ReLU           ReLU()                Reconstruction(), L1(coefficient)
    p-annealing    ReLU()                Reconstruction(), PAnnealing(coefficient=...)
    Gated          Gated()               Reconstruction(), GateL1(coefficient), GateReconstruction()
    TopK           TopK(k)               Reconstruction(), AuxK()
    multi-TopK     TopK(k)               Reconstruction(), MultiTopK(), AuxK()
    AbsTopK        AbsTopK(k)            Reconstruction(), AuxK()
    GroupMax       GroupMax(k)           Reconstruction(), AuxK()
    BatchTopK      BatchTopK(k)          Reconstruction(), AuxK()
    BatchAbsTopK   BatchAbsTopK(k)       Reconstruction(), AuxK()
    Matryoshka     BatchTopK(k)          Matryoshka(), AuxK()
    JumpReLU       JumpReLU()            Reconstruction(), TargetL0(l0), AuxK()
    tanh JumpReLU  JumpReLU()            Reconstruction(), TanhL0(), PreActivation()
    Mutual Choice  Choice(k)             Reconstruction(), AuxZipf()
    g-SAE          GradientTopK(k)       Reconstruction(), AuxK()
    top-AFA        NormMatching()        Reconstruction(), AFA(), AuxK()
    group bias     ReLU(), tied          Reconstruction(), and the upkeep GroupBias()

Every term is scaled so that its size does not depend on the data's units: reconstruction is the
squared error over the variance of the data, measured once before training.
"""

from saelab.activation_functions import (
    AbsTopK,
    BatchAbsTopK,
    BatchTopK,
    Choice,
    Gated,
    GradientTopK,
    GroupMax,
    JumpReLU,
    NormMatching,
    TopK,
)
from saelab.errors import ConfigError
from saelab.objectives.afa import AFA
from saelab.objectives.auxk import AuxK
from saelab.objectives.base import Step, Term
from saelab.objectives.gated import GateL1, GateReconstruction
from saelab.objectives.l1 import L1
from saelab.objectives.p_annealing import PAnnealing
from saelab.objectives.reconstruction import Matryoshka, MultiTopK, Reconstruction
from saelab.objectives.tanh_l0 import PreActivation, TanhL0
from saelab.objectives.target_l0 import TargetL0
from saelab.objectives.zipf import AuxZipf
from saelab.sae import SAE

__all__ = [
    "AFA",
    "L1",
    "AuxK",
    "AuxZipf",
    "GateL1",
    "GateReconstruction",
    "Matryoshka",
    "MultiTopK",
    "PAnnealing",
    "PreActivation",
    "Reconstruction",
    "Step",
    "TanhL0",
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
        return Reconstruction(), TargetL0(), AuxK()
    if isinstance(sae.activation, Gated):
        return Reconstruction(), GateL1(), GateReconstruction()
    if isinstance(sae.activation, NormMatching):
        return Reconstruction(), AFA(), AuxK()
    if isinstance(sae.activation, Choice):
        return Reconstruction(), AuxZipf()
    if isinstance(
        sae.activation, TopK | AbsTopK | GroupMax | BatchTopK | BatchAbsTopK | GradientTopK
    ):
        return Reconstruction(), AuxK()
    raise ConfigError(
        f"{sae.activation} has no default objective: pass terms=..., for example "
        "(saelab.objectives.Reconstruction(), saelab.objectives.L1(coefficient=5.0))."
    )
