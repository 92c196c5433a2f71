"""What probes.geometry found, as tables and as pages: one run, or several beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from saelab.geometry import (
    AgainstNull,
    Alignment,
    Coherence,
    DarkMatter,
    DifferenceClasses,
    Galaxy,
    LobeTest,
)
from saelab.geometry.figures import (
    against_null_figure,
    dark_matter_figure,
    lobe_map,
    spectrum_figure,
)
from saelab.geometry_survey import WordCrystals
from saelab.report import Card, Grid, Panel, figures_page
from saelab.sae import SAE

DIMENSIONS = ("n_99", "effective_rank", "spectral_rank", "participation")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was measured of one dictionary."""

    classes: DifferenceClasses
    lobes: list[LobeTest]
    cloud: Galaxy
    coherence: Coherence
    alignment: Alignment | None
    error: DarkMatter | None
    words: WordCrystals | None

    def rows(self) -> list[tuple[str, str, AgainstNull]]:
        """Scale, number, and the number beside its null."""
        low, high = self.cloud.law.ranks
        rows = [
            ("crystals", "share of differences in a parallel class", self.classes.share),
            ("crystals", "best |cosine| of disjoint differences", self.classes.best_cosine),
        ]
        for test in self.lobes:
            name = f"{test.n_lobes} lobes"
            rows.append(("lobes", f"{name}, AMI with geometry", test.ami))
            rows.append(("lobes", f"{name}, AMI with geometry", test.ami_random))
            if test.accuracy is not None:
                rows.append(("lobes", f"{name}, balanced accuracy", test.accuracy))
        rows += [
            ("galaxy", f"-slope, ranks {low} to {high}", self.cloud.steepness),
            ("galaxy", "clustering entropy, nats", self.cloud.clustering),
            ("pairs", "largest |cosine|", self.coherence.largest),
            ("pairs", "median nearest |cosine|", self.coherence.nearest),
        ]
        if self.alignment is not None:
            rows.append(("pairs", "encoder-decoder cosine, median", self.alignment.median))
        if self.error is not None:
            rows.append(("error", "R2 of the error by x", self.error.r2_error))
            rows.append(("error", "R2 of its squared norm by x", self.error.r2_norm))
        if self.words is not None:
            rows += [
                ("words", f"{one.name}: mean cosine", one.cosine)
                for one in sorted(self.words.relations, key=lambda one: one.name)
            ]
            rows.append(("words", "silhouette by relation, held out", self.words.separation))
            rows.append(("words", "second word found by a vector", self.words.found))
        return rows


NUMBERS = f"{'value':>8} {'null':>8} {'± sd':>7} {'excess':>8} {'z':>8}  p      null is"


def numbers(one: AgainstNull) -> str:
    """A number, its null and what is between them, under `NUMBERS`."""
    z = "-" if one.z is None else f"{one.z:.1f}"
    return (
        f"{one.value:8.3f} {one.mean:8.3f} {one.spread:7.3f} {one.excess:+8.3f} {z:>8}  "
        f"{one.p:<6.3f} {one.null} ({len(one.draws)})"
    )


def table(found: Found) -> list[str]:
    """Lines to print."""
    lines = [f"{'scale':9} {'number':42} {NUMBERS}"]
    lines += [f"{scale:9} {name:42} {numbers(one)}" for scale, name, one in found.rows()]
    cloud = found.cloud
    for name in DIMENSIONS:
        own, null = getattr(cloud.dimensions, name), getattr(cloud.null_dimensions, name)
        lines.append(f"{'galaxy':9} {'dimensions, ' + name:42} {own:8.1f} {null:8.1f}")
    if found.error is not None:
        lines.append(str(found.error))
    return lines


def by_number(runs: Mapping[str, Found]) -> dict[tuple[str, str, str], dict[str, AgainstNull]]:
    """(scale, number, null) -> the number of each run that has it."""
    found: dict[tuple[str, str, str], dict[str, AgainstNull]] = {}
    for run_name, one in runs.items():
        for scale, name, value in one.rows():
            found.setdefault((scale, name, value.null), {})[run_name] = value
    return found


def table_of_runs(runs: Mapping[str, Found]) -> list[str]:
    """Lines to print: every number of every run, the runs under one another."""
    width = max(len(name) for name in runs)
    lines = [f"{'scale':9} {'number':42} {'run':{width}} {NUMBERS}"]
    for (scale, name, _), values in by_number(runs).items():
        for place, (run_name, one) in enumerate(values.items()):
            first = f"{scale:9} {name:42}" if place == 0 else " " * 52
            lines.append(f"{first} {run_name:{width}} {numbers(one)}")
    for name in DIMENSIONS:
        for place, (run_name, one) in enumerate(runs.items()):
            first = f"{'galaxy':9} {'dimensions, ' + name:42}" if place == 0 else " " * 52
            own = getattr(one.cloud.dimensions, name)
            null = getattr(one.cloud.null_dimensions, name)
            lines.append(
                f"{first} {run_name:{width}} {own:8.1f} {null:8.1f} {'':7} {own - null:+8.1f}"
            )
    return lines


def page_of_runs(runs: Mapping[str, Found]) -> str:
    """The same as a self-contained page, a figure a number."""
    return figures_page(
        eyebrow="Geometry",
        title="How are the directions arranged, run by run?",
        lead=", ".join(runs),
        warnings=[],
        cards=[
            Card(
                name=name,
                value=f"steepness {one.cloud.steepness.value:.2f}",
                note=f"random directions {one.cloud.steepness.mean:.2f}",
            )
            for name, one in runs.items()
        ],
        panels=[
            Panel(
                title=f"{scale}: {name}",
                caption=f"Diamonds are the dictionaries, dots the draws of the null: {null}.",
                figure=against_null_figure(values, name),
            )
            for (scale, name, null), values in by_number(runs).items()
        ],
        tables=[],
        notes=[],
    )


def panels_of(found: Found, sae: SAE, directions: Tensor, name: str) -> list[Panel]:
    """The figures, each with how to read it."""
    rows = found.rows()
    shares = {f"{name} ({one.null})": one for scale, name, one in rows if scale != "galaxy"}
    clustering = {"clustering entropy": found.cloud.clustering}
    last = found.lobes[-1]
    panels = [
        Panel(
            title="Every number beside its null",
            caption="Diamonds are the dictionary, dots the draws of the null. The distance between "
            "the two is the effect.",
            figure=against_null_figure(shares, "value"),
        ),
        Panel(
            title="Spectrum of the cloud",
            caption=f"Eigenvalues of the covariance of the unit directions; R2 of the line is "
            f"{found.cloud.law.r2:.3f} over its ranks, and says nothing about others.",
            figure=spectrum_figure(found.cloud),
        ),
        Panel(
            title="Clustering entropy",
            caption="Entropy of a Gaussian of the same covariance less that of the cloud.",
            figure=against_null_figure(clustering, "nats"),
        ),
        Panel(
            title=f"{last.n_lobes} lobes of co-occurrence",
            caption=f"A point a latent; two of {sae.d_out} dimensions. AMI {last.ami.value:.3f}: 0 "
            "is chance and 1 equality with clusters of geometry. Distances between far points "
            "mean little.",
            figure=lobe_map(last, directions),
        ),
    ]
    if found.error is not None:
        panels.append(
            Panel(
                title="What is in the error?",
                caption="Fitted on some documents, measured on others.",
                figure=dark_matter_figure({name: found.error}),
            )
        )
    return panels


def page(found: Found, sae: SAE, directions: Tensor, name: str) -> str:
    """The same as a self-contained page."""
    ami = found.lobes[0].ami
    return figures_page(
        eyebrow="Geometry",
        title="How are the directions arranged?",
        lead=f"{sae.d_sae:,} latents of {name} at {sae.hook}.",
        warnings=[],
        cards=[
            Card(
                name="Lobes follow geometry",
                value=f"AMI {ami.value:.3f}",
                note=f"null {ami.mean:.3f}; 1 would be the same clusters",
            ),
            Card(
                name="Slope",
                value=f"{found.cloud.law.slope:.2f}",
                note=f"random directions {-found.cloud.steepness.mean:.2f}",
            ),
            Card(
                name="Parallel differences",
                value=f"{found.classes.share.value:.1%}",
                note=f"Gaussian cloud {found.classes.share.mean:.1%}",
            ),
        ],
        panels=panels_of(found, sae, directions, name),
        tables=[],
        notes=[str(test) for test in found.lobes],
        grids=[
            Grid(
                title="All numbers",
                columns=["scale", "number", "value", "null", "excess", "p", "null is"],
                rows=[
                    [
                        scale,
                        number,
                        f"{one.value:.4f}",
                        f"{one.mean:.4f}",
                        f"{one.excess:+.4f}",
                        f"{one.p:.3f}",
                        one.null,
                    ]
                    for scale, number, one in found.rows()
                ],
            )
        ],
    )
