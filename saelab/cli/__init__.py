"""The command line: one verb each, one line and exit status 2 for a user's error.

    saelab quickstart · plan · harvest · train · sweep · evaluate · atlas · map · geometry ·
    documents · explain · steer · trace · pareto · explore · import · export · doctor

A `SaelabError` is the user's to mend and becomes one line; any other exception is a bug of ours
and keeps its traceback.
"""

import difflib
import sys
from collections.abc import Sequence

from saelab.cli import (
    atlas,
    collecting,
    data,
    dictionaries,
    explaining,
    exploring,
    importing,
    start,
    steering,
    surveying,
    sweeping,
    tracing,
    training,
)
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import USER_ERROR, run
from saelab.cli.verbs import Verb, say
from saelab.errors import ConfigError

__all__ = ["VERBS", "main"]

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        start.QUICKSTART,
        data.PLAN,
        data.HARVEST,
        training.TRAIN,
        sweeping.SWEEP,
        dictionaries.EVALUATE,
        atlas.ATLAS,
        atlas.MAP,
        surveying.GEOMETRY,
        collecting.DOCUMENTS,
        explaining.EXPLAIN,
        steering.STEER,
        tracing.TRACE,
        sweeping.PARETO,
        exploring.EXPLORE,
        importing.IMPORT,
        importing.EXPORT,
        start.DOCTOR,
    )
}
"""Every verb by name, in the order of a first day's work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after `saelab`; those of the process if not given.

    Returns:
        The exit status: 0 done, 1 something was found broken, 2 a user's error, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int | None:
    if not words or words[0] in ("-h", "--help"):
        say(_overview())
        return 0 if words else USER_ERROR
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        say(version("saelab"))
        return 0
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(VERBS)}."
        raise ConfigError(f"There is no verb {words[0]!r}. {hint} See: saelab --help")
    verb = VERBS[words[0]]
    parser = Parser(
        prog=f"saelab {verb.name}",
        description=verb.summary,
        epilog=f"example:\n  {verb.example}",
    )
    if verb.add_flags_for is not None:
        verb.add_flags_for(parser, words[1:])
    else:
        verb.add_flags(parser)
    return verb.run(parse(parser, words[1:]))


def _overview() -> str:
    lines = [f"  {verb.name:<12}{verb.summary}" for verb in VERBS.values()]
    return "\n".join(
        [
            "saelab: sparse autoencoders on language models.",
            "",
            *lines,
            "",
            "Each verb explains itself: saelab VERB --help",
        ]
    )
