"""How much would each edge matter if the model were linear? Edge attribution patching.

    EAP       score(u -> v) = mean over rows of
                  sum over positions of (u_stand_in - u_clean) . dm/d(input of v) at clean
    EAP-IG    the slope is the mean over points at which the embedding is
                  alpha x clean + (1 - alpha) x stand-in

Slopes are taken before the norm of each receiver, so all edges come from one backward pass a point,
and the edges out of a component sum to its own first-order effect. EAP sees nothing where softmax
is saturated at the clean prompt; EAP-IG looks along the way. Of the two kinds of integrated
gradients in use, this is the one over inputs.

`rule` says where the points are. The published code of EAP-IG takes alpha = k / steps for k from 0
to steps - 1, which is "left" here (the patch prompt is a point, the clean one is not); "midpoint",
the default, is exact to a higher order in 1 / steps.

Source: Syed et al. 2023 (arXiv 2310.10348) for EAP; Hanna et al. 2024 (arXiv 2403.17806) for
EAP-IG.
"""

import torch

from saelab.circuits.feature_effects import EffectsConfig
from saelab.patching.experiment import Experiment
from saelab.patching.scores import EdgeScores

__all__ = ["edge_attribution"]


def edge_attribution(experiment: Experiment, config: EffectsConfig | None = None) -> EdgeScores:
    """Score every edge by gradients.

    Args:
        experiment: Model, prompts and stand-ins.
        config: `EffectsConfig(method="attribution")` is EAP; "integrated" is EAP-IG, with its steps
            and rule, and the default. Its batch size is not used: the experiment has one.

    Returns:
        Predicted changes of what is measured, m(without the edge) - m(clean).
    """
    config = config or EffectsConfig(steps=5)
    started = experiment.clock()
    if config.method == "attribution":
        scores, method = experiment.slopes(), "EAP"
    else:
        points = [experiment.slopes(share) for share in config.alphas()]
        scores = torch.stack(points).mean(0)
        method = f"EAP-IG ({config.steps} steps, {config.rule})"
    return EdgeScores(experiment.graph, scores, method, experiment.clock() - started)
