"""What do people and atlases call the latents of a graph?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from saelab.graphs.node import Node

__all__ = ["HasLabels", "atlas_labels"]


@runtime_checkable
class HasLabels(Protocol):
    """Anything that names latents: an Atlas, say."""

    def labels(self, latents: Sequence[int] | None = None) -> dict[int, str]:
        """The best label of each latent asked for; "" or missing where there is none."""
        ...


def atlas_labels(atlases: Mapping[str, HasLabels]) -> Callable[[Node], str | None]:
    """What `AttributionGraph.with_labels` asks for each node, out of atlases.

    Args:
        atlases: By the hook point that their dictionary reads.

    Returns:
        The label of a latent of one of these dictionaries, None for every other node.
    """
    named: dict[str, dict[int, str]] = {}

    def label(node: Node) -> str | None:
        hook = node.hook or ""
        if hook not in atlases or node.kind != "latent" or node.index is None:
            return None
        if hook not in named:
            named[hook] = atlases[hook].labels()
        return named[hook].get(node.index) or None

    return label
