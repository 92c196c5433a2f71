"""The verb `explore`: start the web app on a folder of runs."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from saelab.cli.verbs import Verb, say
from saelab.errors import ConfigError
from saelab.run_summaries import find_runs

__all__ = ["EXPLORE", "app_script"]


def app_script() -> Path:
    """The explorer's script: in a wheel it lies inside the package, in a checkout beside it.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(__file__).parent.parent
    places = (package / "explorer_app", package.parent / "app")
    for place in places:
        if (place / "streamlit_app.py").exists():
            return place / "streamlit_app.py"
    raise ConfigError(
        f"The explorer is not installed: looked for streamlit_app.py in "
        f"{' and '.join(str(place) for place in places)}. Install saelab again."
    )


def _add_explore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("runs"),
        help="a run, or a folder of runs (default: runs)",
    )
    parser.add_argument("--port", type=int, default=8501, help="port on this machine (8501)")
    parser.add_argument(
        "--address",
        default="localhost",
        help="who may connect: localhost, or 0.0.0.0 for everybody (default: localhost)",
    )


def _explore(arguments: argparse.Namespace) -> NoReturn:
    folder: Path = arguments.folder.absolute()
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder {folder}. Name a run or a folder of runs; "
            "`saelab quickstart` makes a first one."
        )
    found = find_runs(folder)
    run = ""
    if len(found) == 1 and found[0].folder == folder:
        # A run by itself is shown among its siblings, so that it can be compared with them.
        run, folder = f"?run={folder.name}", folder.parent
        found = find_runs(folder)
    say(f"{len(found)} runs in {folder}")
    say(f"Open http://localhost:{arguments.port}/{run} (Ctrl-C stops the explorer)")
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(app_script())),
        *("--server.port", str(arguments.port), "--server.address", arguments.address),
        *("--", str(folder)),
    ]
    sys.stdout.flush()
    # The server takes this process's place, so that whatever stops the one stops the other.
    os.execv(sys.executable, command)


EXPLORE = Verb(
    name="explore",
    summary="Browse runs, latents and prompts in a web app.",
    example="saelab explore runs",
    add_flags=_add_explore,
    run=_explore,
)
