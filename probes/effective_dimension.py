"""How many dimensions do a model's activations use, hook point by hook point?

    python -m probes.effective_dimension runs/acts --out runs/dimensions.html
    python -m probes.effective_dimension --model smollm2 --out runs/dimensions.html

The store holds any number of hook points. Without a store the model runs over the text once, and
five sites of every layer are measured on the way: nothing is stored. Attention outputs are reported
to need about 60 % of their directions for 99 % of the variance where the residual stream needs 90 %
(arXiv 2508.16929); the entropy of Roy and Vetterli 2007, and the participation ratio, give other
numbers for the same spectrum, so all are shown. Read the columns "standardized" and "trimmed" where
one dimension holds most of the variance: it brings the plain numbers to 1.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, add_text, opened_model, say, text_source
from saelab.effective_dimension import Dimensions, SiteDimensions, effective_dimensions
from saelab.errors import ConfigError
from saelab.files import write_bytes
from saelab.plots import template
from saelab.report import Card, Panel, Table, figures_page
from saelab.store import ActivationStore
from saelab.tokens import from_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

VIEWS = ("plain", "standardized", "trimmed")
NUMBERS = ("n_99", "effective_rank", "spectral_rank", "participation")
SITES = ("hook_resid_post", "attn.hook_z", "hook_attn_out", "mlp.hook_in", "hook_mlp_out")
"""What is measured of every layer where no store is given."""


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


def layer_table(found: Mapping[str, SiteDimensions], view: str, number: str) -> list[str]:
    """One line a layer and one column a site: a number as the share of the width."""
    sites = by_site(found)
    lines = [f"{number} of {view} activations, share of the width"]
    lines.append(f"{'layer':>5}" + "".join(f"{site:>18}" for site in sites))
    for layer in sorted({layer for layers in sites.values() for layer in layers}):
        cells = [
            f"{getattr(getattr(layers[layer], view), number) / layers[layer].width:18.3f}"
            if layer in layers else f"{'':18}"
            for layers in sites.values()
        ]  # fmt: skip
        lines.append(f"{layer:5}" + "".join(cells))
    return lines


def by_site(found: Mapping[str, SiteDimensions]) -> dict[str, dict[int, SiteDimensions]]:
    """The measured sites of every layer, `hook_z` of `blocks.3.attn.hook_z` and so on."""
    sites: dict[str, dict[int, SiteDimensions]] = {}
    for hook, measured in found.items():
        head, _, rest = hook.partition(".")
        layer, _, site = rest.partition(".")
        if head == "blocks" and layer.isdigit():
            sites.setdefault(site, {})[int(layer)] = measured
    return sites


def _across_layers(found: Mapping[str, SiteDimensions], view: str) -> "Figure":
    """One line a site: the share of its directions that hold 99 % of the variance, by layer."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for site, layers in by_site(found).items():
        figure.add_scatter(
            name=site,
            x=list(layers),
            y=[getattr(one, view).n_99 / one.width for one in layers.values()],
            mode="lines+markers",
            hovertemplate=f"{site} of layer %{{x}}<br>99 % of the variance in %{{y:.1%}} of the "
            "directions<extra></extra>",
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="share of the directions")
    return figure


def _side_by_side(found: Mapping[str, SiteDimensions], view: str) -> "Figure":
    """Four bars a hook point, one for each definition."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, name in enumerate(NUMBERS):
        figure.add_bar(
            name=name,
            x=list(found),
            y=[shares(getattr(site, view), site.width)[place] for site in found.values()],
            hovertemplate="%{x}<br>" + name + " %{y:.3f} of the width<extra></extra>",
        )
    figure.update_xaxes(title="hook point")
    figure.update_yaxes(title="share of the width")
    figure.update_layout(barmode="group")
    return figure


def page(found: Mapping[str, SiteDimensions], measured: str) -> str:
    """The same as a self-contained page."""
    panels = []
    for view in VIEWS:
        figure = (_across_layers if _many_layers(found) else _side_by_side)(found, view)
        figure.update_yaxes(range=[0, 1.02])
        figure.update_layout(template=template(), showlegend=True)
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
        lead=f"{len(found)} hook points of {measured}, by four definitions and in three views.",
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


def _many_layers(found: Mapping[str, SiteDimensions]) -> bool:
    return any(len(layers) > 1 for layers in by_site(found).values())


def _opened(asked: argparse.Namespace) -> tuple[ActivationStore, str]:
    """What is measured, and its name: a store, or sites of every layer while the model runs."""
    if asked.store is not None:
        return ActivationStore.open(asked.store), str(asked.store)
    model = opened_model(asked.model, asked.device)
    # Some positions, such as the first of a context, are left out, so a few more are read.
    tokens = from_text(model, text_source(asked.text), max_tokens=2 * asked.max_tokens)
    sites = asked.site or SITES
    hooks = [f"blocks.{layer}.{site}" for layer in range(model.n_layers) for site in sites]
    store = ActivationStore.stream(model, tokens, hooks)
    if store.n_tokens < asked.max_tokens:
        say(f"The text gives {store.n_tokens:,} activations, fewer than {asked.max_tokens:,}.")
    return store, f"{model.name} on {asked.text}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        parser = Parser(prog="python -m probes.effective_dimension", description=__doc__)
        parser.add_argument("store", type=Path, nargs="?", help="folder of a finished harvest")
        parser.add_argument("--out", type=Path, help="page to write")
        parser.add_argument("--max-tokens", type=int, default=50_000, help="activations measured")
        parser.add_argument("--remove", type=int, default=3, help="dimensions that are trimmed")
        parser.add_argument(
            "--site", action="append", help=f"of every layer (default: {', '.join(SITES)})"
        )
        add_model(parser)
        add_text(parser)
        asked = parse(parser, argv)
        if asked.store is not None and asked.site:
            raise ConfigError("A store has its own hook points; --site is for a model's layers.")
        store, measured = _opened(asked)
        with ProgressBar("Measuring") as bar:
            found = effective_dimensions(
                store, max_tokens=asked.max_tokens, remove=asked.remove, progress=bar
            )
        lines = table(found)
        if asked.store is None:
            lines = [*layer_table(found, "plain", "n_99"), ""]
            lines += layer_table(found, "standardized", "n_99")
        for line in lines:
            say(line)
        if asked.out is not None:
            write_bytes(asked.out, page(found, measured).encode())
            say(f"Page: {asked.out}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
