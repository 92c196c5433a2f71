"""The steering report as a page: the best strengths, the figures, the texts side by side."""

from saelab.report import Card, Grid, Panel, Table, figures_page
from saelab.steering.figures import cost_against_effect, effect_against_strength
from saelab.steering.results import Curve, SteeringReport

__all__ = ["steering_page"]

SHOWN = 240
"""Characters of a text in the table."""


def steering_page(report: SteeringReport) -> str:
    """A self-contained HTML page of a `SteeringReport`."""
    name, model = str(report.concept["name"]), str(report.about["model"].get("name"))
    best = max(
        (one for one in report.curves if not one.control),
        key=lambda one: report.chosen(one).score,
    )
    return figures_page(
        eyebrow="Steering",
        title=f"What does it cost to steer {model} towards {name}?",
        lead=(
            f"{len(report.curves)} directions at {len(best.points)} lengths of push each, on "
            f"{report.about['n_prompts']} prompts; side effects on "
            f"{report.about['n_held_out_predictions']:,} predictions of held-out text."
        ),
        warnings=_warnings(report),
        cards=_cards(report, best),
        panels=_panels(report),
        tables=[_definitions(report)],
        grids=[_choices(report), _texts(report)],
        notes=_notes(report),
    )


def _warnings(report: SteeringReport) -> list[str]:
    if len(report.clean.outcomes) < 2:
        return ["One prompt both chose the strength and reported it: the scores are too good."]
    return []


def _cards(report: SteeringReport, best: Curve) -> list[Card]:
    chosen = report.chosen(best)
    point = best.at(chosen.strength)
    controls = [report.chosen(one).score for one in report.curves if one.control]
    return [
        Card(
            name="Best overall",
            value=f"{chosen.score:.2f} of 2",
            note=f"{best.name} at strength {chosen.strength:g}; the best control has "
            f"{max(controls):.2f}",
        ),
        Card(
            name="Gain there",
            value=f"{report.gain(point):+.2f} {report.concept['unit']}",
            note="over the unsteered text",
        ),
        Card(
            name="Side effect there",
            value=f"{report.ce_change(point):+.3f} nats",
            note="of cross-entropy per prediction on held-out text",
        ),
        Card(
            name="Perplexity there",
            value=f"{point.perplexity:,.1f}",
            note=f"of the text under the unsteered model; its own has "
            f"{report.clean.perplexity:,.1f}",
        ),
    ]


def _panels(report: SteeringReport) -> list[Panel]:
    how = "A line per direction, a mark per strength, from the unsteered model outwards. Gray and "
    how += "dotted: random directions and latents, pushed just as far."
    return [
        Panel(
            title="What does an effect cost on other text?",
            caption=how,
            figure=cost_against_effect(report),
        ),
        Panel(
            title="What does it cost in fluency?",
            caption="Perplexity by the unsteered model. A text that goes in circles has a low one: "
            "the hover shows how much is repeated.",
            figure=cost_against_effect(report, "perplexity"),
        ),
        Panel(
            title="How far must one push?",
            caption="The same gains by the length of the push.",
            figure=effect_against_strength(report),
        ),
    ]


def _choices(report: SteeringReport) -> Grid:
    rows = []
    for curve in report.curves:
        chosen = report.chosen(curve)
        point = curve.at(chosen.strength)
        own = f"{point.length / curve.norm:.3g}" if curve.norm else ""
        rows.append(
            [
                curve.name,
                f"{chosen.strength:g}",
                own,
                f"{chosen.score:.2f}",
                f"{chosen.score_choosing:.2f}",
                f"{report.gain(point):.2f}",
                f"{report.ce_change(point):.3f}",
                f"{point.perplexity:.1f}",
            ]
        )
    return Grid(
        title="The best strength of each direction",
        columns=[
            "direction",
            "strength",
            "in its own units",
            "score",
            "score where chosen",
            f"gain, {report.concept['unit']}",
            "CE held out, nats",
            "perplexity",
        ],
        rows=rows,
    )


def _texts(report: SteeringReport) -> Grid:
    """Each prompt continued without steering and by every direction at its chosen strength."""
    rows = []
    for place, clean in enumerate(report.clean.outcomes):
        rows.append([clean.prompt, "unsteered", clean.text[:SHOWN]])
        for curve in report.curves:
            one = curve.at(report.chosen(curve).strength).outcomes[place]
            rows.append(["", curve.name, one.text[:SHOWN]])
    return Grid(title="What is written", columns=["prompt", "by", "continuation"], rows=rows)


def _definitions(report: SteeringReport) -> Table:
    clean = report.clean
    unit = str(report.concept["unit"])
    return Table(
        title="The unsteered model",
        rows=[
            ("concept", f"{clean.concept:.3f} {unit}", "mean over prompts; gains start here"),
            ("perplexity", f"{clean.perplexity:.2f}", "exp(mean loss of its own texts)"),
            ("repeated", f"{clean.repetition:.0%}", "bigrams that occur earlier in the text"),
            (
                "CE, held out",
                f"{clean.ce_held_out:.4f} nats",
                "cross-entropy per prediction of the held-out text",
            ),
            *(
                (f"mean |h|, {hook}", f"{norm:.2f}", "the unit of strength there")
                for hook, norm in report.norms.items()
            ),
        ],
    )


def _notes(report: SteeringReport) -> list[str]:
    config, bars = report.config, report.concept["bars"]
    return [
        "The push is added at every position but the model's first token, in prompts, in what is "
        "generated and in held-out text. Texts are generated greedily.",
        "The score of a text is the harmonic mean of three ratings of 0, 1 or 2, and 0 if one is: "
        f"concept (gain from {bars[0]:g} and {bars[1]:g} {report.concept['unit']}), fluency "
        f"(loss at most {config['fluency_bars'][0]:g} and {config['fluency_bars'][1]:g} nats per "
        "token above the unsteered text's, one less where it goes in circles), relevance (at least "
        f"{config['relevance_bars'][0]:.0%} and {config['relevance_bars'][1]:.0%} of the unsteered "
        "text's log P(text | prompt) - log P(text)).",
        "Each direction's strength was chosen on the prompts in even places; its score is that of "
        "the prompts in odd places. The ratings are the model's own, not a judge's.",
    ]
