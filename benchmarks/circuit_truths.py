"""Do circuit methods find circuits that are known?

    python -m benchmarks.circuit_truths

On the written induction circuit (`saelab.patching.compiled_induction`), with soft and with
saturated attention and with a head that adds noise, edges are scored by every method and compared
with the five true ones. On the learned one (`saelab.patching.trained_induction`, a minute of
training for each seed) the truth is what exact patching of single heads and edges says. For every
method:

    area        under the ROC curve, the pessimistic one: ties count as wrong
    precision   average precision; chance gives the share of edges that are true
    found       of the true edges, those that score a hundredth of the largest or more
    forward, backward, seconds    prompts run, and time

and the same for permuted labels. Spread is over seeds.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

from saelab.circuits.feature_effects import EffectsConfig
from saelab.patching import (
    EdgeScores,
    Experiment,
    acdc_sweep,
    average_precision,
    edge_attribution,
    edge_effects,
    node_effects,
    precision_recall,
    rank_correlation,
    roc_area,
)
from saelab.patching.compiled_induction import TRUE_EDGES, compiled_induction, induction_pairs
from saelab.patching.trained_induction import InductionTraining, train_induction

THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
METHODS: dict[str, Callable[[Experiment], EdgeScores]] = {
    "EAP": lambda one: edge_attribution(one, EffectsConfig(method="attribution")),
    "EAP-IG, 5 steps": lambda one: edge_attribution(one, EffectsConfig(steps=5)),
    "EAP-IG, 25 steps": lambda one: edge_attribution(one, EffectsConfig(steps=25)),
    "exact edges": edge_effects,
    "ACDC, 5 thresholds": lambda one: _edges_of(acdc_sweep(one, THRESHOLDS)[1]),
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="draws of everything (3)")
    parser.add_argument("--trained", type=int, default=1, help="trained models; 0 for none (1)")
    parser.add_argument("--steps", type=int, default=800, help="of training (800)")
    asked = parser.parse_args()
    print("| circuit | method | area | precision | found | forward | backward | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, beta in (("written, soft", 3.0), ("written, saturated", 50.0)):
        for method, score in METHODS.items():
            print(_row(name, method, [_written(score, beta, n) for n in range(asked.seeds)]))
        null = [_written(METHODS["EAP-IG, 25 steps"], beta, n, True) for n in range(asked.seeds)]
        print(_row(name, "EAP-IG, 25 steps, labels permuted", null), flush=True)
    prior = len(TRUE_EDGES) / len(
        Experiment(compiled_induction(), induction_pairs(3)).graph.edges()
    )
    print(f"\n{prior:.3f} of the edges of the written circuit are true\n")
    for seed in range(asked.trained):
        _trained(seed, asked.steps)


def _written(
    score: Callable[[Experiment], EdgeScores], beta: float, seed: int, permuted: bool = False
) -> list[float]:
    pairs = induction_pairs(12, seed)
    model = compiled_induction(beta, noise=0.05, seed=seed)
    found = score(Experiment(model, pairs.relabelled(seed) if permuted else pairs))
    graph, sizes = found.graph, found.scores.abs()
    truth = graph.mask(TRUE_EDGES)
    values = found.values().abs(), truth[graph.allowed()]
    recall = precision_recall((sizes > 0.01 * sizes.max()) & graph.allowed(), truth)[1]
    spent = found.cost
    numbers = (roc_area(*values), average_precision(*values), recall)
    return [*numbers, float(spent.forward), float(spent.backward), spent.seconds]


def _trained(seed: int, steps: int) -> None:
    """Correlations with exact effects, of heads and of edges."""
    losses: list[float] = []
    model = train_induction(
        InductionTraining(seed=seed, steps=steps), progress=lambda *what: losses.append(what[2])
    )
    one = Experiment(model, induction_pairs(24, seed, length=20, d_vocab=32))
    nodes, edges = node_effects(one), edge_effects(one)
    print(
        f"trained, seed {seed}: loss {losses[-1]:.3f} nats, difference {one.clean:+.2f}; heads by "
        f"exact effect: {', '.join(f'{n} {nodes.of(n):+.2f}' for n in nodes.ranked()[:4])}"
    )
    print("| method | Spearman, heads | Spearman, edges | forward | backward | seconds |")
    print("|---|---|---|---|---|---|")
    for name, score in METHODS.items():
        if name == "exact edges":
            continue
        found = score(one)
        heads = found.nodes().values().abs(), nodes.values().abs()
        both = found.values().abs(), edges.values().abs()
        print(
            f"| {name} | {rank_correlation(*heads):+.2f} | {rank_correlation(*both):+.2f} | "
            f"{found.cost.forward:,} | {found.cost.backward:,} | {found.cost.seconds:.1f} |"
        )
    print(f"exact: {edges.cost.forward:,} prompts forward, {edges.cost.seconds:.1f} s", flush=True)


def _edges_of(scores: object) -> EdgeScores:
    assert isinstance(scores, EdgeScores), "a sweep over edges scores edges"
    return scores


def _row(circuit: str, method: str, runs: Sequence[Sequence[float]]) -> str:
    cells = []
    for place, values in enumerate(zip(*runs, strict=True)):
        mean, half = statistics.fmean(values), (max(values) - min(values)) / 2
        if place < 3:
            cells.append(f"{mean:.2f} ±{half:.2f}")
        else:
            cells.append(f"{mean:,.0f}" if place < 5 else f"{mean:.2f}")
    return f"| {circuit} | {method} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
