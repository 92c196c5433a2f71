"""Which of the published structures does a dictionary have? Crystals, lobes and galaxy with nulls.

    python -m probes.geometry runs/topk --out runs/geometry.html
    python -m probes.geometry --runs runs/layer_05 runs/layer_15 runs/layer_25 --words

Reads the dictionary and the activations it was trained on. Three scales after Li et al. 2024, "The
geometry of concepts": parallel differences, lobes of co-occurrence against decoder geometry, and
the shape of the whole cloud; then coherence, encoder against decoder, and how much of the error is
linear. Every line gives the number, what the same number is under a null, and the excess: a
z-score says how many latents there were, the excess how large the effect is. Activations that the
dictionary was trained on give errors that are a little too small; the split of the error is fitted
on some documents and measured on others. With --runs there is one table of all of them, each number
of every run beside its own null; --words lets the model read pairs of words at each hook point.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from probes.geometry_tables import Found, page, page_of_runs, table, table_of_runs
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import say
from saelab.errors import ConfigError, DataError
from saelab.files import write_bytes, write_json
from saelab.geometry import (
    AFFINITIES,
    AffinityKind,
    ChunkCounts,
    DarkMatter,
    alignment,
    chunks_of,
    coherence,
    dark_matter,
    difference_classes,
    galaxy,
    oriented,
    spatial_modularity,
)
from saelab.geometry_survey import word_crystals
from saelab.models import LanguageModel, load_model
from saelab.run_folders import HarvestSource, dictionary_of, store_of
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore


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
    model: LanguageModel | None = None,
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
        words=None if model is None else word_crystals(model, sae),
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


def measured(folder: Path, asked: argparse.Namespace) -> tuple[Found, Tensor, SAE]:
    """What one run's dictionary has."""
    sae = dictionary_of(folder)
    place = asked.store or store_of(folder)
    store = ActivationStore.open(place)
    if sae.hook is not None:
        store = store.at(sae.hook)
    model = load_model(HarvestSource.of(place).model) if asked.words else None
    with ProgressBar(f"Measuring {folder}", "step") as bar:
        found, directions = measure(
            sae, store, max_tokens=asked.max_tokens, chunk_tokens=asked.chunk_tokens,
            lobes=asked.lobes, affinity=asked.affinity, n_null=asked.draws, bar=bar, model=model,
        )  # fmt: skip
    return found, directions, sae


def flags() -> Parser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.geometry", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished training run")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="several, in one table")
    parser.add_argument("--store", type=Path, help="activations, if not those of the run")
    parser.add_argument("--out", type=Path, help="page to write; numbers go beside it as .json")
    parser.add_argument("--max-tokens", type=int, default=100_000, help="activations read")
    parser.add_argument("--chunk-tokens", type=int, default=32, help="tokens of a chunk")
    parser.add_argument("--lobes", type=int, nargs="+", default=[2, 8], help="numbers of lobes")
    parser.add_argument("--affinity", choices=AFFINITIES, default="phi", help="co-occurrence")
    parser.add_argument("--draws", type=int, default=3, help="draws of the costly nulls")
    parser.add_argument("--words", action="store_true", help="also pairs of words, by the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        if (asked.run is None) == (not asked.runs):
            raise ConfigError("Name one run, or several after --runs. See --help.")
        if asked.runs:
            runs = {str(folder): measured(folder, asked)[0] for folder in asked.runs}
            lines, html = table_of_runs(runs), page_of_runs(runs) if asked.out else ""
            rows = [(name, row) for name, one in runs.items() for row in one.rows()]
        else:
            found, directions, sae = measured(asked.run, asked)
            name = str(asked.run)
            lines, html = table(found), page(found, sae, directions, name) if asked.out else ""
            rows = [(name, row) for row in found.rows()]
        for line in lines:
            say(line)
        if asked.out is not None:
            write_bytes(asked.out, html.encode())
            told = [
                {"run": run_name, "scale": scale, "number": number, **one.to_json()}
                for run_name, (scale, number, one) in rows
            ]
            write_json(asked.out.with_suffix(".json"), {"numbers": told})
            say(f"Page: {asked.out}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
