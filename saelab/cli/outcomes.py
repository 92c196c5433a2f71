"""What does a program end with? Done, a user's error in one line, or a bug with its traceback."""

import sys
import warnings
from collections.abc import Callable

from saelab.errors import Interrupted, SaelabError

__all__ = ["INTERRUPTED", "USER_ERROR", "run"]

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses."""


def run(work: Callable[[], int | None]) -> int:
    """Do the work of a program; a deliberate error becomes one line on standard error.

    >>> run(lambda: None)
    0
    """
    shown = warnings.showwarning
    warnings.showwarning = _one_line_warning
    try:
        return work() or 0
    except Interrupted as error:
        return _complain(str(error), INTERRUPTED)
    except KeyboardInterrupt:
        return _complain("stopped; what was finished is kept.", INTERRUPTED)
    except SaelabError as error:
        return _complain(str(error), USER_ERROR)
    finally:
        warnings.showwarning = shown


def _complain(message: str, status: int) -> int:
    sys.stderr.write(f"saelab: {' '.join(message.split())}\n")
    return status


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"saelab: warning: {' '.join(str(message).split())}\n")
