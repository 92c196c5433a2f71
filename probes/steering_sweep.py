"""Do latents that were found by a rule steer better than random pushes, and at what price?

    python -m probes.steering_sweep runs/topk --out runs/steering

For each concept, a list of words, the latents are ranked by how much their decoder direction
promotes the words, and of the first twenty the one with the best output score (Arad et al. 2025)
on those words is taken. It is compared, at equal length of push, with the difference in means of
eight sentences with and eight without the concept, with a random direction, and with a random
latent. The table gives, for the strength that half of the prompts chose, the gain on all prompts
and its price; the score is that of the other half. NAME_figure.html in --out draws gain and price
against the length of the push.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import opened_model, say
from saelab.models import LanguageModel
from saelab.run_folders import HarvestSource, dictionary_of, store_of
from saelab.sae import SAE
from saelab.steering import (
    SteeringConfig,
    SteeringReport,
    difference_in_means,
    latent_direction,
    latents_for_words,
    measure_steering,
    output_scores,
    word_tokens,
)
from saelab.steering.strength_figure import strength_figure

CONCEPTS = {
    "war": ["war", "army", "battle", "soldiers", "military", "troops", "enemy"],
    "money": ["money", "tax", "dollars", "bank", "income", "budget", "debt"],
    "school": ["school", "schools", "students", "teachers", "college", "education", "learning"],
}
SENTENCES = {
    "war": [
        "The army crossed the river before the battle began.",
        "Soldiers guarded the border all through the war.",
        "The enemy fired on our troops from the hills.",
        "A general ordered the military to attack the fort.",
        "The battle left many soldiers wounded.",
        "Troops marched to the front with heavy guns.",
        "The war ended when the enemy surrendered.",
        "Our navy sank two ships of the enemy fleet.",
    ],
    "money": [
        "The bank raised the interest on the debt.",
        "They paid a tax of two hundred dollars.",
        "The budget leaves little money for next year.",
        "Her income fell and she owed the bank money.",
        "The company borrowed ten million dollars.",
        "A tax on income pays for the budget.",
        "He saved his money and paid off the debt.",
        "The price rose by forty dollars in a month.",
    ],
    "school": [
        "The teachers met the students at the school.",
        "College students read books in the library.",
        "Education begins long before the first day of school.",
        "The school hired three teachers this year.",
        "Students learn to write in the first class.",
        "She went to college to study education.",
        "The teacher explained the lesson to the class.",
        "Good schools help children learn to read.",
    ],
}
WITHOUT = [
    "The river runs slowly through the green valley.",
    "He cooked soup and set the table for dinner.",
    "A cold wind blew over the hills at night.",
    "The cat slept in the sun on the window sill.",
    "They walked along the beach and looked for shells.",
    "The old bridge was painted red last summer.",
    "She plays the piano in the evening.",
    "Rain fell on the garden all afternoon.",
]
PROMPTS = [
    "The weather today is",
    "My friend told me",
    "In the morning we",
    "She opened the door",
    "The best thing about",
    "Last year I went",
]
HELD_OUT = [
    "Whales are mammals that live in the ocean. They breathe air through a hole on top of the head "
    "and can stay under water for more than an hour.",
    "To bake bread, mix flour, water, salt and yeast. Let the dough rest until it has doubled in "
    "size, then shape it and bake it in a hot oven.",
    "The painter mixed blue and yellow to get the green of the leaves. He worked quickly, because "
    "the light was changing.",
]
N_CANDIDATES = 20


def best_latent(model: LanguageModel, sae: SAE, words: Sequence[str]) -> tuple[int, float]:
    """The latent of best output score on some words, and that score."""
    tokens = word_tokens(model, words)
    candidates = latents_for_words(model, sae, tokens, N_CANDIDATES)
    scores = output_scores(model, sae, candidates, tokens=tokens)
    place = int(scores.raised.argmax())
    return candidates[place], float(scores.raised[place])


def measured(
    model: LanguageModel, sae: SAE, name: str, config: SteeringConfig, folder: Path
) -> SteeringReport:
    """The sweep of one concept; finished points are kept in the folder."""
    latent, score = best_latent(model, sae, CONCEPTS[name])
    say(f"{name}: latent {latent}, output score {score:.3f}")
    hook = str(sae.hook)
    directions = [
        latent_direction(sae, latent),
        difference_in_means(model, hook, SENTENCES[name], WITHOUT),
    ]
    with ProgressBar(f"Steering towards {name}", unit="point") as bar:
        report = measure_steering(
            model,
            directions,
            prompts=PROMPTS,
            concept=CONCEPTS[name],
            held_out=HELD_OUT,
            sae=sae,
            config=config,
            folder=folder / "points",
            progress=bar,
        )
    report.save(folder / f"{name}.json")
    report.save_html(folder / f"{name}.html")
    page = folder / f"{name}_figure.html"
    strength_figure(report).write_html(page, include_plotlyjs=True)
    return report


def table(reports: dict[str, SteeringReport]) -> list[str]:
    """A line per concept and direction, at its chosen strength, and one per strength below."""
    head = (
        "strength",
        "score",
        "gain, nats",
        "CE held out",
        "KL held out",
        "perplexity",
        "repeated",
    )
    lines = [f"{'concept':8} {'direction':22}" + "".join(f"{name:>13}" for name in head)]
    for name, report in reports.items():
        for curve in report.curves:
            chosen = report.chosen(curve)
            for point in curve.points:
                mark = f"{chosen.score:.2f} *" if point.strength == chosen.strength else ""
                numbers = (
                    f"{point.strength:g}",
                    mark,
                    f"{report.gain(point):+.2f}",
                    f"{report.ce_change(point):+.3f}",
                    f"{point.kl_held_out:.3f}",
                    f"{point.perplexity:.1f}",
                    f"{point.repetition:.0%}",
                )
                cells = "".join(f"{number:>13}" for number in numbers)
                lines.append(f"{name:8} {curve.name:22}{cells}")
    return [*lines, "* the strength that the prompts in even places chose; score of the others"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the concepts and print the table."""

    def work() -> None:
        parser = Parser(prog="python -m probes.steering_sweep", description=__doc__)
        parser.add_argument("run", type=Path, help="a run folder")
        parser.add_argument("--out", type=Path, required=True, help="where pages and numbers go")
        parser.add_argument("--concept", action="append", choices=list(CONCEPTS), help="all")
        parser.add_argument("--max-new-tokens", type=int, default=12, help="tokens written")
        asked = parse(parser, argv)
        sae = dictionary_of(asked.run)
        model = opened_model(HarvestSource.of(store_of(asked.run)).model)
        config = SteeringConfig(strengths=(0.2, 0.4, 0.8), max_new_tokens=asked.max_new_tokens)
        names = asked.concept or list(CONCEPTS)
        reports = {name: measured(model, sae, name, config, asked.out) for name in names}
        clean = next(iter(reports.values())).clean
        say(f"unsteered perplexity {clean.perplexity:.1f}, repeated {clean.repetition:.0%}")
        for line in table(reports):
            say(line)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
