"""Which heads do a task, by the codes their outputs get where it can be done and where it cannot?

    head_outputs   what every head of a model adds, at one position of some prompts
    codes          one small autoencoder of all of them; each output becomes one integer
    scores         heads, and pairs of heads, whose codes appear on positives only; against a null

Nothing is patched and no gradient is taken: one pass of the prompts, seconds for the rest.
"""

from saelab.code_circuits.codes import NO_CODE, CodeConfig, head_codes
from saelab.code_circuits.head_outputs import head_outputs
from saelab.code_circuits.scores import CodeCircuit, ScoreConfig, code_circuit

__all__ = [
    "NO_CODE",
    "CodeCircuit",
    "CodeConfig",
    "ScoreConfig",
    "code_circuit",
    "head_codes",
    "head_outputs",
]
