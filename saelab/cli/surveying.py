"""The verb that measures how a dictionary's directions are arranged: `geometry`."""

import argparse
from pathlib import Path

from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import Verb, say
from saelab.geometry_survey import GeometrySurvey, SurveyConfig, survey_run
from saelab.geometry_survey.saved import FOLDER

__all__ = ["GEOMETRY"]


def _add_geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--wider",
        type=Path,
        action="append",
        metavar="RUN",
        help="a wider dictionary of the same hook point, to see what splits in it; repeatable",
    )
    parser.add_argument("--store", type=Path, help="activations, if not those of the run")
    parser.add_argument(
        "--again", action="store_true", help="measure anew, whatever is there already"
    )
    add_flags(parser, SurveyConfig)


def _geometry(arguments: argparse.Namespace) -> None:
    config = from_flags(SurveyConfig, arguments)
    with ProgressBar("Surveying", unit="step") as bar:
        found = survey_run(
            arguments.run, config, wider=arguments.wider or (), store=arguments.store,
            again=arguments.again, progress=bar,
        )  # fmt: skip
    for line in lines(found):
        say(line)
    say(f"{arguments.run / FOLDER}: next, saelab explore shows it on the page of geometry.")


def lines(found: GeometrySurvey) -> list[str]:
    """The numbers of a survey, one a line, each beside its null."""
    said = [f"{found.about['n_alive']:,} latents fire on {found.about['n_tokens']:,} tokens"]
    for number, level in found.levels.items():
        said.append(f"{number} lobes: nearest directions of one's own lobe {level.company}")
        said.append(f"{number} lobes: mutual information with clusters by angle {level.ami}")
    said.append(f"share of differences in a parallel class {found.parallel_share}")
    said.append(f"largest |cosine| of two differences {found.parallelograms.largest}")
    if found.words is None:
        said.append(f"pairs of words: {found.words_missing}")
    for one in () if found.words is None else found.words.relations:
        said.append(f"{one.name}: cosine of two differences {one.cosine}")
    said.append(f"steepness of the spectrum {found.galaxy.steepness}")
    said += [f"{name} {one}" for name, one in found.pairs.items()]
    for family in found.splits.values():
        said.append(
            f"{family.wider}: {family.n_edges:,} parent-child edges (null {family.n_edges_null:,}),"
            f" {family.n_splits:,} latents split"
        )
    if found.tree is not None:
        said.append(
            f"nested prefixes: {found.tree.orphan_rate:.1%} of {found.tree.candidates:,} latents "
            f"without a parent (null {found.tree.orphan_rate_null:.1%})"
        )
    return said


GEOMETRY = Verb(
    name="geometry",
    summary="Measure how a dictionary's directions are arranged, each number beside its null.",
    example="saelab geometry runs/topk",
    add_flags=_add_geometry,
    run=_geometry,
)
