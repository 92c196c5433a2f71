"""Which of the published structures does a dictionary have? Crystals, lobes and galaxy with nulls.

    python -m probes.geometry runs/topk --out runs/geometry.html

Reads the dictionary and the activations it was trained on. Three scales after Li et al. 2024, "The
geometry of concepts": parallel differences, lobes of co-occurrence against decoder geometry, and
the shape of the whole cloud; then coherence, encoder against decoder, and how much of the error is
linear. Every line gives the number, what the same number is under a null, and the excess: a
z-score says how many latents there were, the excess how large the effect is. Activations that the
dictionary was trained on give errors that are a little too small; the split of the error is fitted
on some documents and measured on others.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import say
from saelab.errors import DataError
from saelab.files import write_bytes, write_json
from saelab.geometry import (
    AFFINITIES,
    AffinityKind,
    AgainstNull,
    Alignment,
    ChunkCounts,
    Coherence,
    DarkMatter,
    DifferenceClasses,
    Galaxy,
    LobeTest,
    alignment,
    chunks_of,
    coherence,
    dark_matter,
    difference_classes,
    galaxy,
    oriented,
    spatial_modularity,
)
from saelab.geometry.figures import (
    against_null_figure,
    dark_matter_figure,
    lobe_map,
    spectrum_figure,
)
from saelab.report import Card, Grid, Panel, figures_page
from saelab.run_folders import dictionary_of, store_of
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore


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
        return rows


def table(found: Found) -> list[str]:
    """Lines to print."""
    head = f"{'scale':9} {'number':42} {'value':>8} {'null':>8} {'± sd':>7} {'excess':>8} {'z':>8}"
    lines = [head + "  p      null is"]
    for scale, name, one in found.rows():
        z = "-" if one.z is None else f"{one.z:.1f}"
        lines.append(
            f"{scale:9} {name:42} {one.value:8.3f} {one.mean:8.3f} {one.spread:7.3f} "
            f"{one.excess:+8.3f} {z:>8}  {one.p:<6.3f} {one.null} ({len(one.draws)})"
        )
    cloud = found.cloud
    for name in ("n_99", "effective_rank", "spectral_rank", "participation"):
        own, null = getattr(cloud.dimensions, name), getattr(cloud.null_dimensions, name)
        lines.append(f"{'galaxy':9} {'dimensions, ' + name:42} {own:8.1f} {null:8.1f}")
    if found.error is not None:
        lines.append(str(found.error))
    return lines


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


def measure(
    sae: SAE,
    store: ActivationStore,
    *,
    max_tokens: int,
    chunk_tokens: int,
    lobes: Sequence[int],
    affinity: AffinityKind,
    n_null: int,
    bar: ProgressBar,
) -> tuple[Found, Tensor]:
    """Everything of one dictionary, and the directions it was measured on."""
    rows = store.rows(0, min(max_tokens, store.n_tokens))
    x = rows.activations
    parts = [sae.encode(part) for part in x.split(4096)]
    codes = SparseCodes.cat(parts)
    signed = sae.activation.signed
    sums = torch.zeros(sae.d_sae).index_add_(0, codes.indices.cpu(), codes.values.cpu().float())
    # A signed latent's direction has no sign of its own; one is chosen for all that is not |cos|.
    directions = oriented(sae.W_dec.detach().cpu(), sums)
    fires = codes.firing_counts().cpu() > 0
    alive = directions[fires & (directions.norm(dim=1) > 0)]
    done, total = 0, 5 + len(lobes)

    def step(note: str) -> None:
        nonlocal done
        done += 1
        bar(done, total, note)

    step("co-occurrence")
    counts = ChunkCounts.of(codes, chunks_of(rows.addresses.row, chunk_tokens))
    tests = []
    for number in lobes:
        step(f"{number} lobes")
        tests.append(
            spatial_modularity(
                counts, directions, number, kind=affinity, signed=signed, n_fits=n_null,
                n_random=n_null,
            )
        )  # fmt: skip
    step("galaxy")
    cloud = galaxy(alive, n_null=n_null)
    step("crystals")
    classes = difference_classes(alive, n_null=n_null)
    step("pairs of directions")
    pairs = coherence(alive, n_null=n_null)
    reads = alignment(sae, n_null=n_null) if sae.d_in == sae.d_out else None
    step("error")
    found = Found(
        classes=classes,
        lobes=tests,
        cloud=cloud,
        coherence=pairs,
        alignment=reads,
        error=error_of(sae, x, rows.addresses.document, n_null),
    )
    return found, directions


def error_of(sae: SAE, x: Tensor, document: Tensor, n_null: int) -> DarkMatter | None:
    """Split the error, fitted on two of three documents; None if there are too few tokens."""
    if sae.is_transcoder:
        return None
    held = document % 3 == 0 if int(document.max()) > 0 else torch.arange(len(x)) >= len(x) * 2 // 3
    try:
        return dark_matter(sae, x[~held], x[held], n_null=n_null)
    except DataError as error:
        say(f"The error was not split: {error}")
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        parser = Parser(prog="python -m probes.geometry", description=__doc__)
        parser.add_argument("run", type=Path, help="folder of a finished training run")
        parser.add_argument("--store", type=Path, help="activations, if not those of the run")
        parser.add_argument("--out", type=Path, help="page to write; numbers go beside it as .json")
        parser.add_argument("--max-tokens", type=int, default=100_000, help="activations read")
        parser.add_argument("--chunk-tokens", type=int, default=32, help="tokens of a chunk")
        parser.add_argument("--lobes", type=int, nargs="+", default=[2, 8], help="numbers of lobes")
        parser.add_argument("--affinity", choices=AFFINITIES, default="phi", help="co-occurrence")
        parser.add_argument("--draws", type=int, default=3, help="draws of the costly nulls")
        asked = parse(parser, argv)
        sae = dictionary_of(asked.run)
        store = ActivationStore.open(asked.store or store_of(asked.run))
        if sae.hook is not None:
            store = store.at(sae.hook)
        with ProgressBar("Measuring", "step") as bar:
            found, directions = measure(
                sae, store, max_tokens=asked.max_tokens, chunk_tokens=asked.chunk_tokens,
                lobes=asked.lobes, affinity=asked.affinity, n_null=asked.draws, bar=bar,
            )  # fmt: skip
        for line in table(found):
            say(line)
        if asked.out is not None:
            write_bytes(asked.out, page(found, sae, directions, str(asked.run)).encode())
            numbers = [
                {"scale": scale, "number": name, **one.to_json()}
                for scale, name, one in found.rows()
            ]
            write_json(asked.out.with_suffix(".json"), {"numbers": numbers})
            say(f"Page: {asked.out}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
