"""Write what make.py then opens: python -m tests.golden.circuit_tracer.write."""

from pathlib import Path

from saelab import formats
from saelab.graphs import AttributionGraph
from saelab.sae import SAE
from tests.formats.cases import dictionary
from tests.graphs.by_hand import hand_graph, random_graph

FOLDER = Path(__file__).parent
KINDS = ("relu", "jumprelu")


def graphs() -> dict[str, AttributionGraph]:
    """By slug: by hand, at random and pruned, and with every kind of text that a page shows."""
    hostile = hand_graph(
        tokens=("<s>", ' "(p=0.5)\n', " is"), groups={"role": ("l0a", "l0b")}, pinned=("l0a",)
    )
    return {
        "hand": hand_graph(groups={"role": ("l0a", "l0b")}, pinned=("l1a",)),
        "pruned": random_graph(3, n_latents=40).prune(0.8, 0.9),
        "texts": hostile.with_labels({"l0a": 'a "label" (p=1)\u2028', "p": ' "Paris" (p=0.1)'}),
    }


def sets() -> dict[str, list[SAE]]:
    """By name: two layers each, with a skip path."""
    return {
        kind: [
            dictionary(
                kind,
                skip=True,
                hook=f"blocks.{n}.mlp.hook_in",
                hook_out=f"blocks.{n}.hook_mlp_out",
            )
            for n in range(2)
        ]
        for kind in KINDS
    }


if __name__ == "__main__":
    for slug, graph in graphs().items():
        graph.export(FOLDER / "graphs" / f"{slug}.json", format="circuit-tracer")
    for name, layers in sets().items():
        formats.export(layers, FOLDER / name, "circuit-tracer")
