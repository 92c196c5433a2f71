"""How many dimensions do a model's activations use, hook point by hook point?

    python -m probes.effective_dimension runs/acts --out runs/dimensions.html

The store holds any number of hook points. Attention outputs are reported to need about 60 % of
their directions for 99 % of the variance where the residual stream needs 90 % (arXiv 2508.16929);
the entropy of Roy and Vetterli 2007, and the participation ratio, give other numbers for the same
spectrum, so all are shown. Read the columns "standardized" and "trimmed" where one dimension holds
most of the variance: it brings the plain numbers to 1.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import say
from saelab.effective_dimension import Dimensions, SiteDimensions, effective_dimension
from saelab.files import write_bytes
from saelab.plots import template
from saelab.report import Card, Panel, Table, figures_page
from saelab.store import ActivationStore

VIEWS = ("plain", "standardized", "trimmed")
NUMBERS = ("n_99", "effective_rank", "spectral_rank", "participation")


def table(found: Mapping[str, SiteDimensions]) -> list[str]:
    """One line a hook point and view; numbers as shares of the width."""
    head = f"{'hook point':28} {'width':>6} {'view':13}"
    lines = [head + "".join(f"{name:>16}" for name in NUMBERS)]
    for hook, site in found.items():
        for view in VIEWS:
            numbers = shares(getattr(site, view), site.width)
            first = f"{hook:28} {site.width:6}" if view == "plain" else " " * 35
            lines.append(f"{first} {view:13}" + "".join(f"{n:16.3f}" for n in numbers))
    return lines


def shares(dimensions: Dimensions, width: int) -> list[float]:
    """The four numbers as shares of the width, 0 to 1."""
    return [getattr(dimensions, name) / width for name in NUMBERS]


def page(found: Mapping[str, SiteDimensions], store: str) -> str:
    """The same as a self-contained page."""
    import plotly.graph_objects as go

    panels = []
    for view in VIEWS:
        figure = go.Figure()
        for place, name in enumerate(NUMBERS):
            figure.add_bar(
                name=name,
                x=list(found),
                y=[shares(getattr(site, view), site.width)[place] for site in found.values()],
                hovertemplate="%{x}<br>" + name + " %{y:.3f} of the width<extra></extra>",
            )
        figure.update_yaxes(title="share of the width", range=[0, 1.02])
        figure.update_xaxes(title="hook point")
        figure.update_layout(template=template(), showlegend=True, barmode="group")
        caption = {
            "plain": "Activations as they are.",
            "standardized": "Every dimension divided by its standard deviation.",
            "trimmed": "Without the dimensions of largest variance.",
        }[view]
        panels.append(
            Panel(title=f"{view.capitalize()} activations", caption=caption, figure=figure)
        )
    rows = [
        (
            f"{hook}, {view}",
            f"{getattr(site, view).n_99} of {site.width}",
            ", ".join(f"{name} {getattr(getattr(site, view), name):.1f}" for name in NUMBERS[1:]),
        )
        for hook, site in found.items()
        for view in VIEWS
    ]
    few = [h for h, site in found.items() if site.n_tokens < 10 * site.width]
    return figures_page(
        eyebrow="Effective dimension",
        title="How many dimensions do the activations use?",
        lead=f"{len(found)} hook points of {store}, by four definitions and in three views.",
        warnings=[
            f"Fewer than ten tokens a dimension at {', '.join(few)}: every number is too small."
        ] if few else [],
        cards=[
            Card(
                name=hook,
                value=f"{site.plain.n_99 / site.width:.0%}",
                note=f"of directions hold 99 % of the variance; the largest single dimension "
                f"{site.top_share:.1%}",
            )
            for hook, site in list(found.items())[:6]
        ],
        panels=panels,
        tables=[Table(title="Directions for 99 % of the variance", rows=rows)],
        notes=[
            f"{hook}: {site.n_tokens:,} tokens; trimmed leaves out dimensions "
            f"{', '.join(map(str, site.removed)) or 'none'}."
            for hook, site in found.items()
        ],
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        parser = Parser(prog="python -m probes.effective_dimension", description=__doc__)
        parser.add_argument("store", type=Path, help="folder of a finished harvest")
        parser.add_argument("--out", type=Path, help="page to write")
        parser.add_argument("--max-tokens", type=int, default=50_000, help="activations measured")
        parser.add_argument("--remove", type=int, default=3, help="dimensions that are trimmed")
        asked = parse(parser, argv)
        store = ActivationStore.open(asked.store)
        found = {}
        with ProgressBar("Measuring") as bar:
            for place, hook in enumerate(store.hooks, start=1):
                found[hook] = effective_dimension(
                    store, hook, max_tokens=asked.max_tokens, remove=asked.remove
                )
                bar(place, len(store.hooks), hook)
        for line in table(found):
            say(line)
        if asked.out is not None:
            write_bytes(asked.out, page(found, str(asked.store)).encode())
            say(f"Page: {asked.out}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
