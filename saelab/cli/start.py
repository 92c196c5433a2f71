"""Verbs for a first day: the whole job once (`quickstart`), and is all well? (`doctor`)."""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.summary import evaluation_lines
from saelab.cli.verbs import Verb, say
from saelab.doctor import Finding, check_folder, check_installation
from saelab.quickstart import QuickstartConfig, QuickstartResult, quickstart

__all__ = ["DOCTOR", "QUICKSTART"]

N_DESCRIBED = 5


def _add_quickstart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        help="where everything goes (default: runs/quickstart)",
    )
    add_flags(parser, QuickstartConfig)


def _quickstart(arguments: argparse.Namespace) -> None:
    config = from_flags(QuickstartConfig, arguments)
    say(f"A first dictionary of {config.hook} in {config.model}, trained on {config.text}.")
    _report(quickstart(arguments.out, config, stage=_stage), config)


@contextmanager
def _stage(name: str) -> Iterator[ProgressBar]:
    """Show a bar while a stage runs, and a line with its time when it is done."""
    started = time.monotonic()
    with Working(name) as clock, ProgressBar(name, replaces=clock) as bar:
        yield bar
    say(f"  {name:<26} {time.monotonic() - started:6.1f} s")


def _report(result: QuickstartResult, config: QuickstartConfig) -> None:
    say()
    say(f"Trained on: {result.train_tokens.describe()}")
    say(f"Held out:   {result.held_out.describe()}")
    share = result.overlap["share"]
    say(f"Overlap:    {share:.2%} of the held-out 13-grams occur in the training text.")
    trained = result.training.metrics[-1]["tokens"]
    say(
        f"Dictionary: TopK(k={config.k}), {config.d_sae:,} latents of width {result.store.d_in}, "
        f"trained on {trained:,} tokens ({trained / result.store.n_tokens:.1f} passes over "
        f"{result.store.n_tokens:,} activations)."
    )
    say()
    say("On held-out text:")
    for line in evaluation_lines(result.evaluation):
        say(line)
    say()
    say(f"{N_DESCRIBED} latents, drawn over the range of densities; «» marks the strongest token:")
    for latent in result.first_look.pick(N_DESCRIBED, seed=config.seed):
        say(result.first_look.describe(latent))
    say()
    say("Open these in a browser:")
    for page in result.pages:
        say(f"  {page}")
    say("Next:")
    saelab = _command()
    say(f"  {saelab} evaluate {result.run} --max-loss-tokens 8192")
    say(
        f"  {saelab} train {result.folder / 'activations'} --out {result.folder / 'wider'} "
        f"--d-sae {2 * config.d_sae} --tokens 3_000_000"
    )
    say(f"  {saelab} export {result.run} --format saelens --out {result.folder / 'saelens'}")
    say(f"  {saelab} doctor {result.folder}")


def _command() -> str:
    """How saelab is called from here: by its path where its folder is not on the PATH."""
    called = Path(sys.argv[0])
    if called.name != "saelab" or shutil.which("saelab"):
        return "saelab"
    here = Path.cwd()
    return str(called.relative_to(here) if called.is_relative_to(here) else called)


QUICKSTART = Verb(
    name="quickstart",
    summary="Train, measure and read a first dictionary, from nothing, in about ten minutes.",
    example="saelab quickstart --out runs/quickstart",
    add_flags=_add_quickstart,
    run=_quickstart,
)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="*", help="run folders, stores or dictionaries to verify"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    findings: list[Finding] = []
    if not arguments.folder:
        with Working("Looking at the installation"):
            findings = check_installation()
    for folder in arguments.folder:
        with ProgressBar("Verifying", unit="part") as bar:
            findings += check_folder(folder, bar)
    for finding in findings:
        say(f"{finding.status:<7}{finding.subject}: {finding.text}")
    broken = sum(finding.status == "broken" for finding in findings)
    say(f"{broken} broken." if broken else "Nothing is broken.")
    return 1 if broken else 0


DOCTOR = Verb(
    name="doctor",
    summary="Check the installation, or verify every file of a run folder.",
    example="saelab doctor runs/quickstart",
    add_flags=_add_doctor,
    run=_doctor,
)
