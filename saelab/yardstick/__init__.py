"""How good is a dictionary beside one that was told the answer? Three tests on a known task.

On prompts whose attributes are known (who is the indirect object, who the subject, in which order),
a supervised dictionary has one vector per value of an attribute. It is the yardstick: whatever an
unsupervised dictionary does is read beside it, and beside doing nothing.

    prompts = ioi_prompts(model, 400)
    x = read_at(model, prompts, hook, "END")
    told = fit_supervised(x[train], prompts.attributes(train), "mse")

    approximate   can the reconstruction stand for the activation, and is nothing lost in the rest?
    control       can few latents change one attribute and nothing else?
    interpret     does a latent stand for a value, or for a union of values?

Source: Makelov, Lange and Nanda 2024, "Towards principled evaluations of sparse autoencoders for
interpretability and control".
"""

from saelab.yardstick.approximating import Approximation, approximate
from saelab.yardstick.controlling import Control, agreement, greedy_edit, weights_of
from saelab.yardstick.interpreting import Matched, matched_values, share_of_values
from saelab.yardstick.ioi import IoiPrompts, counterfactual, ioi_names, ioi_prompts
from saelab.yardstick.running import Outcome, outcome, read_at
from saelab.yardstick.supervised import SupervisedDictionary, fit_supervised

__all__ = [
    "Approximation",
    "Control",
    "IoiPrompts",
    "Matched",
    "Outcome",
    "SupervisedDictionary",
    "agreement",
    "approximate",
    "counterfactual",
    "fit_supervised",
    "greedy_edit",
    "ioi_names",
    "ioi_prompts",
    "matched_values",
    "outcome",
    "read_at",
    "share_of_values",
    "weights_of",
]
