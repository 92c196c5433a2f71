"""Which heads and MLPs carry a behavior, and do cheap methods find them?

    python -m probes.circuit_baselines --out runs/circuit_baselines

On pairs of prompts of one form that differ in what the answer depends on, components are ranked by
exact patching (one at a time takes its value on the other prompt), by EAP and by EAP-IG, on one
half of the pairs. On the other half the first n of each ranking are kept, and everything else takes
its value on the other prompt. Edges between components are ranked and judged likewise, and ACDC
removes components one after another at one threshold: on edges it would need a pass for each of
some seventy thousand. Every curve stands beside its nulls. Printed for every behavior:

    rank correlation   Spearman's, of the sizes of scores with those of exact effects
    area               mean faithfulness over the logarithm of circuit size; nulls with their range
    size at 80, 90 %   the first size from which on every larger circuit is so faithful
    rest, at that size faithfulness of everything but the circuit of the 90 % column; 0 is best
    forward, backward  prompts run to find the ranking, and its seconds
"""

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch

from saelab.circuits.feature_effects import EffectsConfig
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.errors import ConfigError
from saelab.models import LanguageModel
from saelab.patching import (
    Ablation,
    Comparison,
    EdgeAblation,
    EdgeScores,
    Experiment,
    Method,
    NodeAblation,
    NodeScores,
    Pairs,
    acdc,
    curve,
    curve_sizes,
    edge_attribution,
    node_effects,
    null_curves,
    rank_correlation,
    save_comparison_page,
    shuffled_within_kinds,
    tokenized_pairs,
)

NAMES = ("Mary", "John", "Tom", "James", "David", "Anna", "Sarah", "Paul", "Mark", "Alice", "Peter")
PLACES = ("store", "park", "school", "office", "station", "garden")
THINGS = ("drink", "book", "letter", "gift", "ring", "ball")
NOUNS = (
    ("key", "keys"), ("book", "books"), ("car", "cars"), ("picture", "pictures"), ("door", "doors"),
    ("letter", "letters"), ("student", "students"), ("teacher", "teachers"), ("child", "children"),
    ("dog", "dogs"), ("boy", "boys"), ("girl", "girls"), ("house", "houses"), ("tree", "trees"),
)  # fmt: skip
NEAR = ("cabinet", "window", "table", "garden", "river", "school")
BEHAVIORS = ("indirect object", "agreement")
GRADIENTS = {
    "EAP": EffectsConfig(method="attribution"),
    "EAP-IG": EffectsConfig(method="integrated", steps=5),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for on the command line, for one behavior."""

    behavior: str
    """One of `BEHAVIORS`."""
    sizes: int
    """Points of a curve."""
    draws: int
    """Of each null."""
    threshold: float | None
    """Of ACDC, in nats; None leaves it out."""
    model: str
    """Its name."""


def pairs_of(model: LanguageModel, behavior: str, n: int) -> Pairs:
    """Pairs whose names or nouns are single tokens, so that all prompts have one length."""

    def single(*words: str) -> bool:
        return all(len(model.encode(f" {word}")) == 1 for word in words)

    prompts = []
    if behavior == "indirect object":
        names = [name for name in NAMES if single(name)]
        for at, (one, two) in enumerate(permutations(names, 2)):
            place = [p for p in PLACES if single(p)][at % 5]
            thing = [t for t in THINGS if single(t)][at % 4]
            text = f"When {one} and {two} went to the {place}, {{}} gave a {thing} to"
            # Half of the time the first name is the one that is repeated.
            said, other = (two, one) if at % 2 else (one, two)
            prompts.append((text.format(said), text.format(other), f" {other}", f" {said}"))
    else:
        nouns = [pair for pair in NOUNS if single(*pair)]
        places = [p for p in NEAR if single(p)]
        for at, (few, many) in enumerate(nouns * len(places)):
            rest = f"near the {places[at // len(nouns)]}"
            subject, other = (f"The {few} {rest}", f"The {many} {rest}")
            both = (subject, other, " is", " are"), (other, subject, " are", " is")
            prompts.append(both[at % 2])
    if len(prompts) < n:
        raise ConfigError(f"{n} pairs were asked for; {behavior} has {len(prompts)}.")
    drawn = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))[:n].tolist()
    return tokenized_pairs(model, [prompts[at] for at in drawn])


def components(
    model: LanguageModel, found: Experiment, test: Experiment, asked: Asked
) -> tuple[Comparison, dict[str, EdgeScores]]:
    """Heads and MLPs: exact, EAP, EAP-IG, ACDC and the nulls."""
    with ProgressBar(f"{asked.behavior}: exact", unit="component") as bar:
        exact = node_effects(found, progress=bar)
    edges = {name: edge_attribution(found, config) for name, config in GRADIENTS.items()}
    scores: dict[str, NodeScores] = {"exact": exact} | {n: one.nodes() for n, one in edges.items()}
    ablation = NodeAblation(test)
    sizes = curve_sizes(len(ablation.items), asked.sizes)
    methods = []
    for name, one in scores.items():
        agreement = rank_correlation(one.values().abs(), exact.values().abs())
        methods.append(
            Method(
                name=name,
                curves=[curve(ablation, one.ranked(), sizes, name)],
                cost=one.cost,
                correlation=None if name == "exact" else agreement,
            )
        )

    def discover(model: LanguageModel, pairs: Pairs) -> Sequence[Hashable]:
        return edge_attribution(Experiment(model, pairs), GRADIENTS["EAP-IG"]).nodes().ranked()

    ranking = scores["EAP-IG"].ranked()
    nulls = null_curves(
        ablation,
        model,
        found.pairs,
        discover,
        ranking,
        sizes,
        draws=asked.draws,
        completeness=False,
        progress=_heard,
    )
    notes = [] if asked.threshold is None else [_acdc(found, ablation, asked)]
    return _comparison(ablation, test, found, "components", [*methods, *nulls], asked, notes), edges


def edges_too(
    found: Experiment, test: Experiment, scores: dict[str, EdgeScores], asked: Asked
) -> Comparison:
    """Edges: EAP, EAP-IG and a random circuit."""
    ablation = EdgeAblation(test)
    sizes = curve_sizes(len(ablation.items), asked.sizes)
    methods = []
    for name, one in scores.items():
        _heard(f"edges, {name}")
        line = curve(ablation, one.ranked(), sizes, name, completeness=False)
        methods.append(Method(name=name, curves=[line], cost=one.cost))
    chance = []
    for seed in range(asked.draws):
        _heard(f"edges, random circuit {seed + 1} of {asked.draws}")
        order = shuffled_within_kinds(ablation, scores["EAP-IG"].ranked(), seed)
        chance.append(curve(ablation, order, sizes, "random circuit", completeness=False))
    methods.append(Method(name="random circuit", curves=chance, is_null=True))
    return _comparison(ablation, test, found, "edges", methods, asked, [])


def _acdc(found: Experiment, ablation: NodeAblation, asked: Asked) -> str:
    assert asked.threshold is not None, "asked for only with a threshold"
    with ProgressBar(f"{asked.behavior}: ACDC", unit="component") as bar:
        result = acdc(found, asked.threshold, "node", progress=bar)
    whole, nothing = ablation.with_only(ablation.items), ablation.with_only([])
    rest = [name for name in ablation.items if name not in set(result.nodes)]
    kept, left = (
        (ablation.with_only(names) - nothing) / (whole - nothing) for names in (result.nodes, rest)
    )
    return (
        f"{asked.behavior}: ACDC on components at {asked.threshold:g} nats keeps "
        f"{len(result.nodes)}, KL {result.divergence:.3f} nats, faithfulness {kept:.2f}, the rest "
        f"{left:.2f}; {result.cost.forward:,} prompts forward, {result.cost.seconds:.1f} s"
    )


def _comparison(
    ablation: Ablation,
    test: Experiment,
    found: Experiment,
    items: str,
    methods: list[Method],
    asked: Asked,
    notes: list[str],
) -> Comparison:
    return Comparison(
        behavior=asked.behavior,
        items=items,
        n_items=len(ablation.items),
        model=asked.model,
        whole=test.clean,
        nothing=ablation.with_only([]),
        unit="logits, answer minus other",
        stand_in="the other prompt's value",
        n_discovery=len(found.pairs),
        n_test=len(test.pairs),
        methods=methods,
        notes=notes,
    )


def _heard(what: str) -> None:
    sys.stderr.write(f"  {what}\n")


def measured(model: LanguageModel, pairs: Pairs, asked: Asked, edges: bool) -> list[Comparison]:
    """One behavior; prints as it goes."""
    half, other = pairs.split()
    found, test = Experiment(model, half), Experiment(model, other)
    one, scores = components(model, found, test, asked)
    done = [one, edges_too(found, test, scores, asked)] if edges else [one]
    say(
        f"{asked.behavior}: {len(half)} + {len(other)} pairs of {pairs.clean.shape[1]} tokens; "
        f"difference {test.clean:+.2f} on clean, {test.patched:+.2f} on patch prompts"
    )
    for comparison in done:
        say(f"\n{comparison.behavior}, {comparison.n_items:,} {comparison.items}\n")
        for line in [*comparison.markdown(), *comparison.notes]:
            say(line)
    say("\nlargest edges by EAP-IG: " + ", ".join(map(str, scores["EAP-IG"].ranked()[:8])))
    say()
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""

    def work() -> None:
        parser = Parser(prog="python -m probes.circuit_baselines", description=__doc__)
        parser.add_argument("--out", type=Path, required=True, help="folder for page and numbers")
        parser.add_argument("--pairs", type=int, default=8, help="pairs of each behavior (8)")
        parser.add_argument("--behavior", action="append", choices=BEHAVIORS, help="all")
        parser.add_argument("--sizes", type=int, default=6, help="circuit sizes in a curve (6)")
        parser.add_argument("--draws", type=int, default=2, help="draws of each null (2)")
        parser.add_argument(
            "--acdc", type=float, default=0.02, help="ACDC's threshold in nats; 0 leaves it out"
        )
        parser.add_argument("--edges", action="store_true", help="curves over edges too")
        add_model(parser)
        asked = parse(parser, argv)
        model = opened_model(asked.model, asked.device)
        comparisons = []
        for name in asked.behavior or BEHAVIORS:
            about = Asked(
                behavior=name,
                sizes=asked.sizes,
                draws=asked.draws,
                threshold=asked.acdc or None,
                model=model.name,
            )
            comparisons += measured(model, pairs_of(model, name, asked.pairs), about, asked.edges)
        asked.out.mkdir(parents=True, exist_ok=True)
        for one in comparisons:
            one.save(asked.out / f"{one.behavior.replace(' ', '_')}_{one.items}.json")
        say(f"{save_comparison_page(comparisons, asked.out / 'circuits.html')}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
