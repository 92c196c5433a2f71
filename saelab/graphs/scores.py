"""How far can a graph be believed? Replacement and completeness, with their floors.

With infl the influence, w the weights and A the shares of in-edges,

    replacement  = infl(prompt) / (infl(prompt) + infl(errors))
    completeness = sum_n (1 - sum_{e error} A[n, e]) (infl_n + w_n) / sum_n (infl_n + w_n)

The prompt is tokens and positions. Biases are constants of the model, neither explained nor
missed. Both scores are of the whole graph: pruning drops errors as it drops latents.

A floor is the score of the same graph with every latent taken as error. With no latents, no biases
and token share a, replacement is a but completeness (1 + a)/2, since tokens and errors read nothing
and count as complete: read replacement first.

Source: Ameisen et al. 2025, "Circuit tracing"; circuit-tracer. Floors are ours.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from jaxtyping import Bool
from torch import Tensor

from saelab.errors import DataError
from saelab.graphs.influence import in_sums, propagate
from saelab.graphs.node import INPUTS

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["Scores", "scores"]


@final
@dataclass(frozen=True, kw_only=True)
class Scores:
    """Both scores of a whole graph, with what they would be without latents; 0 to 1."""

    replacement: float
    """Share of the traced influence that ends at the prompt, not at an error."""
    completeness: float
    """Share of what nodes read that is no error, weighted by influence."""
    replacement_floor: float
    """Replacement with every latent taken as error."""
    completeness_floor: float
    """Completeness with every latent taken as error."""


def scores(graph: "AttributionGraph") -> Scores:
    """Both scores with their floors; of the whole graph, which a pruned one remembers.

    Raises:
        DataError: The graph has no read-out with a weight, or nothing it traces ends at the prompt
            or at an error.
    """
    known = graph.pruning
    if known is not None:
        if known.replacement is None:
            raise DataError("The graph this one was pruned from had no scores.")
        return Scores(
            replacement=known.replacement,
            completeness=known.completeness or 0.0,
            replacement_floor=known.replacement_floor or 0.0,
            completeness_floor=known.completeness_floor or 0.0,
        )
    errors, latents = graph.of_kind("error"), graph.of_kind("latent")
    replacement, completeness = _both(graph, errors)
    floor, complete_floor = _both(graph, errors | latents)
    return Scores(
        replacement=replacement,
        completeness=completeness,
        replacement_floor=floor,
        completeness_floor=complete_floor,
    )


def _both(graph: "AttributionGraph", errors: Bool[Tensor, " node"]) -> tuple[float, float]:
    """Both scores, some nodes taken as errors and cut off from what they read."""
    weights = graph.weights.double()
    shares = graph.shares() * ~errors[graph.target]
    influence = propagate(graph.source, graph.target, shares, weights)
    explained = float(influence[graph.of_kind(*INPUTS)].sum())
    missed = float(influence[errors].sum())
    if not explained + missed > 0:
        raise DataError(
            "This graph has no scores: nothing that its read-outs are traced to is a token, a "
            "position or an error. Give a read-out a weight, and edges that lead to one."
        )
    through = influence + weights
    error_share = in_sums(graph.target, shares * errors[graph.source], len(graph))
    complete = float((through * (1 - error_share)).sum() / through.sum())
    return explained / (explained + missed), complete
