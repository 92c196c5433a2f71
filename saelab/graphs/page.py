"""Why did the model say that? One graph as a self-contained page."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.errors import DataError
from saelab.files import write_bytes
from saelab.graphs.figure import graph_figure
from saelab.graphs.node import READ_OUTS, Node
from saelab.graphs.paths import strongest_paths
from saelab.graphs.scores import Scores, scores
from saelab.graphs.texts import one_line
from saelab.report import Card, Grid, Panel, Table, figures_page

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["graph_page", "save_page"]


def save_page(graph: "AttributionGraph", path: str | Path, paths: int = 20) -> Path:
    """Write `graph_page` to a file; returns the file."""
    path = Path(path)
    write_bytes(path, graph_page(graph, paths).encode("utf-8", "backslashreplace"))
    return path


def graph_page(graph: "AttributionGraph", paths: int = 20) -> str:
    """A self-contained page: prompt, answer, drawing, scores with floors, paths, sums.

    Args:
        graph: Pruned, as a rule: a drawing of thousands of nodes shows nothing.
        paths: How many of the strongest paths to list.
    """
    found = _scores(graph)
    answers = [node for node in graph.nodes if node.kind in READ_OUTS]
    named = ", ".join(
        _named(node, graph) + ("" if node.probability is None else f" ({node.probability:.1%})")
        for node in sorted(answers, key=lambda node: -(node.probability or 0.0))[:3]
    )
    prompt = one_line("".join(graph.tokens).strip(), 90)
    return figures_page(
        eyebrow="Attribution graph",
        title=f"Why does \u201c{prompt}\u201d lead to {named or 'nothing'}?",
        lead=f"{len(graph):,} nodes and {graph.n_edges:,} edges"
        + (f" of {one_line(graph.model_name, 80)}" if graph.model_name else "")
        + f". Prompt, token by token: {' | '.join(one_line(token) for token in graph.tokens)}",
        warnings=_doubts(graph, found),
        cards=_cards(graph, found),
        panels=[
            Panel(
                title="What reads what",
                caption="Prompt from left to right, layers upward. Area is influence; an edge's "
                "width is the influence along it, orange where it promotes and blue where it "
                "suppresses. Circles are latents, diamonds errors, squares tokens, hexagons "
                "answers; a bright rim marks what is pinned. Hover for numbers.",
                figure=graph_figure(graph),
            )
        ],
        grids=[grid for grid in (_paths(graph, paths), _sums(graph), _groups(graph)) if grid.rows],
        tables=_tables(graph, found),
        notes=_notes(graph),
    )


def _scores(graph: "AttributionGraph") -> Scores | None:
    try:
        return scores(graph)
    except DataError:
        return None


def _doubts(graph: "AttributionGraph", found: Scores | None) -> list[str]:
    doubts = []
    if found is None:
        doubts.append("This graph has no scores: nothing it traces ends at the prompt or an error.")
    elif found.replacement < 0.5:
        doubts.append(
            f"Only {found.replacement:.0%} of what was traced ends at the prompt; the rest ends at "
            "what the dictionaries missed. Read single paths with care."
        )
    if bool((~graph.totals.isnan()).any()) and not graph.closes(1e-3):
        doubts.append("Some sums do not close to 0.1 %: the graph misses contributions.")
    return doubts


def _cards(graph: "AttributionGraph", found: Scores | None) -> list[Card]:
    cards = []
    if found is not None:
        cards = [
            Card(
                name="Replacement",
                value=f"{found.replacement:.1%}",
                note=f"of influence ends at the prompt; {found.replacement_floor:.1%} with no "
                "latents",
            ),
            Card(
                name="Completeness",
                value=f"{found.completeness:.1%}",
                note=f"of what nodes read is no error; {found.completeness_floor:.1%} with no "
                "latents",
            ),
        ]
    cards.append(
        Card(
            name="Largest gap",
            value=_percent(_largest_gap(graph)),
            note="of a sum that should close, relative to its parts",
        )
    )
    if graph.pruning is not None:
        cards.append(
            Card(
                name="Kept",
                value=f"{graph.pruning.node_share:.1%}",
                note=f"of influence, in {len(graph):,} of {graph.pruning.nodes:,} nodes",
            )
        )
    return cards


def _largest_gap(graph: "AttributionGraph") -> float | None:
    gaps = [gap for *_, gap in _closing(graph) if gap is not None]
    return max(gaps, default=None)


def _closing(
    graph: "AttributionGraph",
) -> list[tuple[Node, float, float, float, float | None]]:
    """Each node with a known total: total, sum shown, sum dropped, and the relative gap."""
    from saelab.graphs.influence import in_sums

    n = len(graph)
    sums = in_sums(graph.target, graph.weight, n).tolist()
    sizes = in_sums(graph.target, graph.weight.abs(), n).tolist()
    dropped = [0.0] * n if graph.dropped is None else graph.dropped.tolist()
    rows = []
    for place, (node, total) in enumerate(zip(graph.nodes, graph.totals.tolist(), strict=True)):
        if math.isnan(total):
            continue
        scale = max(sizes[place], abs(total), abs(dropped[place]))
        gap = abs(total - sums[place] - dropped[place]) / scale if scale else None
        rows.append((node, total, sums[place], dropped[place], gap))
    return rows


def _named(node: Node, graph: "AttributionGraph") -> str:
    if node.label:
        return f"\u201c{one_line(node.label, 40)}\u201d"
    if node.kind == "token" and node.position is not None:
        return f"\u201c{one_line(graph.tokens[node.position], 40)}\u201d"
    return node.name


def _paths(graph: "AttributionGraph", limit: int) -> Grid:
    rows = [
        [
            " \u2192 ".join(_named(node, graph) for node in path.nodes),
            f"{path.share:.4f}",
            "promotes" if path.sign > 0 else "suppresses",
        ]
        for path in strongest_paths(graph, limit)
    ]
    return Grid(title="Strongest paths", columns=["path", "influence", "effect"], rows=rows)


def _sums(graph: "AttributionGraph") -> Grid:
    """Read-outs first, then the nodes whose sums close worst."""
    rows = _closing(graph)
    rows.sort(key=lambda row: (row[0].kind not in READ_OUTS, -(row[4] or 0.0)))
    return Grid(
        title="Do the sums close?",
        columns=["node", "read-out", "sum shown", "sum dropped", "gap"],
        rows=[
            [_named(node, graph), f"{total:.4f}", f"{shown:.4f}", f"{dropped:.4f}", _percent(gap)]
            for node, total, shown, dropped, gap in rows[:20]
        ],
    )


def _groups(graph: "AttributionGraph") -> Grid:
    influence = dict(zip((n.id for n in graph.nodes), graph.influence().tolist(), strict=True))
    rows = [
        [
            one_line(name, 60),
            ", ".join(_named(graph.node(one), graph) for one in ids[:8])
            + (f" and {len(ids) - 8} more" if len(ids) > 8 else ""),
            f"{sum(influence[one] for one in ids):.4f}",
        ]
        for name, ids in graph.groups.items()
    ]
    return Grid(title="Groups", columns=["group", "members", "influence"], rows=rows)


def _tables(graph: "AttributionGraph", found: Scores | None) -> list[Table]:
    tables = []
    if found is not None:
        tables.append(
            Table(
                title="Scores of the whole graph",
                rows=[
                    (
                        "replacement",
                        f"{found.replacement:.4f}",
                        "influence of the prompt / influence of prompt and errors, 0 to 1",
                    ),
                    (
                        "its floor",
                        f"{found.replacement_floor:.4f}",
                        "the same with every latent taken as error",
                    ),
                    (
                        "completeness",
                        f"{found.completeness:.4f}",
                        "share of inputs that is no error, weighted by influence, 0 to 1; tokens "
                        "and errors count as complete",
                    ),
                    (
                        "its floor",
                        f"{found.completeness_floor:.4f}",
                        "the same with every latent taken as error",
                    ),
                ],
            )
        )
    gone = dict(graph.pruning.dropped) if graph.pruning is not None else {}
    kinds = dict.fromkeys([*(node.kind for node in graph.nodes), *gone])
    influence = graph.influence()
    tables.append(
        Table(
            title="Nodes by kind",
            rows=[
                (
                    kind.replace("_", " "),
                    f"{int(graph.of_kind(kind).sum()):,}",
                    f"influence {float(influence[graph.of_kind(kind)].sum()):.4f}; "
                    f"{gone.get(kind, 0):,} dropped",
                )
                for kind in kinds
            ],
        )
    )
    return tables


def _notes(graph: "AttributionGraph") -> list[str]:
    notes = [
        "Attention patterns, normalization scales and MLP outputs are frozen at their values, so "
        "that what a node reads is exactly a sum over what was written before it. A graph says "
        "what contributed, not what would happen if it were changed.",
        "Influence is |contribution| as a share of its target's, followed back from the answers "
        "by their probability.",
    ]
    if graph.pruning is not None:
        notes.append(
            f"Pruned at {graph.pruning.node_threshold:g} of node and "
            f"{graph.pruning.edge_threshold:g} of edge influence; scores are of the whole graph, "
            "and the sums count what was dropped."
        )
    for key, value in list(graph.metadata.items())[:20]:
        notes.append(one_line(f"{key}: {value}", 300))
    return notes


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3%}"
