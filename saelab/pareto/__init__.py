"""Which dictionary is better at the same sparsity? Finished runs as points, curves and a page."""

from saelab.pareto.frontier import Pareto, Point, pareto

__all__ = ["Pareto", "Point", "pareto"]
