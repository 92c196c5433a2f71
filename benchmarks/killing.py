"""Does a program that is killed again and again end with the same files as one that is not?

`kill -9` is the hardest interruption there is: nothing is flushed, no handler runs. A program
passes when its final files are bit-identical, whatever the moments it was killed at.

The processes are forked from a server that has imported everything, so that a kill costs no more
than the work it undoes.
"""

import argparse
import hashlib
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

__all__ = ["KillReport", "Work", "file_hashes", "kill_program", "kill_repeatedly"]

Work = Callable[[Path, Callable[[], None]], None]
"""Does the work in a folder, continuing what it finds there; it calls its second argument when its
preparations are over and kills may begin."""


@dataclass(frozen=True)
class KillReport:
    """What happened."""

    kills: int
    """How many times a process was killed at work."""
    rounds: int
    """How many times the work was done from the beginning to the end."""
    differences: list[str]
    """Files that are not those of an uninterrupted run; empty is a pass."""
    after_kills: list[int]
    """How many data files were in place after each kill: shows that the points differ."""


def file_hashes(folder: Path, ignored: Sequence[str] = (".lock", "timing.jsonl")) -> dict[str, str]:
    """SHA-256 of every file under a folder, by relative path; clocks are not compared."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ignored
    }


def kill_repeatedly(
    work: Work,
    folder: Path,
    kills: int,
    *,
    seed: int = 0,
    kills_per_round: int = 5,
    timeout: float = 300,
) -> KillReport:
    """Do some work uninterrupted, then again while killing it, and compare the folders.

    Work that ends before its kill starts over in an empty folder, until it has been killed `kills`
    times in all; every round is compared.

    Args:
        work: What to do; a function at the top of a module.
        folder: Empty or missing; used for scratch.
        kills: How many kills at random moments of the work.
        seed: Draws the moments.
        kills_per_round: About how often one round of the work is killed before it can finish.
        timeout: Seconds one run may take.
    """
    draw = random.Random(seed)
    whole = folder / "uninterrupted"
    seconds = _run(work, whole, None, timeout)
    assert seconds is not None
    expected = file_hashes(whole)
    done = rounds = 0
    differences: list[str] = []
    after: list[int] = []
    while done < kills:
        place = folder / f"killed-{rounds}"
        while True:
            delay = draw.uniform(0, 2 * seconds / kills_per_round) if done < kills else None
            if _run(work, place, delay, timeout) is not None:
                break
            done += 1
            after.append(len(list(place.rglob("*.safetensors"))))
        found = file_hashes(place)
        differences += [
            f"{place.name}/{name}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        shutil.rmtree(place)
        rounds += 1
    return KillReport(done, rounds, differences, after)


def kill_program(text: str, kill: Callable[[Path, int, int], KillReport]) -> None:
    """The program around a `kill(folder, kills, seed)`: prints one line, exits 1 on a difference.

    Args:
        text: Its description.
        kill: What to run.
    """
    parser = argparse.ArgumentParser(description=text.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many kills (20)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments (0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = kill(Path(scratch), arguments.kills, arguments.seed)
    print(
        f"{report.kills} kills over {report.rounds} rounds, {report.after_kills} data files in "
        f"place; files that differ from an uninterrupted one: {report.differences or 'none'}"
    )
    sys.exit(1 if report.differences else 0)


def _run(work: Work, folder: Path, kill_after: float | None, timeout: float) -> float | None:
    """Seconds of work; None when it was killed before its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, folder, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout) or ours.recv() != "ready":
            raise RuntimeError(f"{work.__name__} did not begin within {timeout} s")
        started = time.monotonic()
        process.join(timeout if kill_after is None else kill_after)
        if process.is_alive() and kill_after is not None:
            return None
        seconds = time.monotonic() - started
    finally:
        if process.is_alive():
            process.kill()
        process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} failed with status {process.exitcode}")
    return seconds


def _child(work: Work, folder: Path, pipe: Connection) -> None:
    work(folder, lambda: pipe.send("ready"))
