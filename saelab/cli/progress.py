"""How does work that takes more than two seconds show that it goes on?

On a terminal a bar or a clock is redrawn in place; anywhere else, as in a log file, a line is
written every so often.
"""

import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol, final, runtime_checkable

__all__ = ["ProgressBar", "Working"]

FIRST_SHOWN = 1.0
"""Seconds before anything is drawn: short work shows nothing."""
LOG_SECONDS = 15.0
"""Seconds between two lines where there is no terminal."""


@runtime_checkable
class Stream(Protocol):
    """What is drawn on: a terminal, or a log file."""

    def write(self, text: str, /) -> int:
        """Add text."""
        ...

    def flush(self) -> None:
        """Show it now."""
        ...

    def isatty(self) -> bool:
        """Whether a line can be drawn again."""
        ...


@final
class Working:
    """A clock for work that cannot say how far it is.

    Args:
        label: What is being done.
        stream: Where to draw; standard error if not given.
    """

    def __init__(self, label: str, stream: Stream | None = None) -> None:
        self.label = label
        self._stream = stream or sys.stderr
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Working":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the clock and clear its line; may be called more than once."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _tick(self) -> None:
        started = time.monotonic()
        terminal = self._stream.isatty()
        drawn = False
        while not self._done.wait(FIRST_SHOWN if terminal else LOG_SECONDS):
            text = f"{self.label}: {time.monotonic() - started:.0f} s"
            self._stream.write(f"\r{text}" if terminal else f"{text}\n")
            self._stream.flush()
            drawn = True
        if drawn and terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@final
class ProgressBar:
    """Called as `progress(done, total, note)`; draws itself and cleans up when the block ends.

    Args:
        label: What is being done.
        unit: What is counted.
        stream: Where to draw; standard error if not given.
        replaces: A clock that runs until the first call.
    """

    def __init__(
        self,
        label: str,
        unit: str = "token",
        stream: Stream | None = None,
        replaces: Working | None = None,
    ) -> None:
        self.label, self.unit = label, unit
        self._stream = stream or sys.stderr
        self._clock = replaces
        self._bar: Any = None
        self._started = self._logged = time.monotonic()
        self._first = self._total = -1

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show how much is done; another total begins another bar."""
        if self._clock is not None:
            self._clock.stop()
        now = time.monotonic()
        if total != self._total:
            self._close()
            # what a resumed run finds done says nothing about the speed
            self._first, self._total, self._started = done, total, now
        if self._stream.isatty():
            if self._bar is not None or now - self._started > FIRST_SHOWN:
                self._draw(done, total, note)
        elif now - self._logged > LOG_SECONDS:
            self._logged = now
            self._stream.write(self._line(done, total, note, now - self._started) + "\n")
            self._stream.flush()

    def _draw(self, done: int, total: int, note: str) -> None:
        from tqdm import tqdm

        new = self._bar is None
        if new:
            self._bar = tqdm(
                desc=self.label,
                total=total,
                initial=self._first,
                unit=self.unit,
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
                file=self._stream,
            )
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if new:
            self._bar.refresh()

    def _line(self, done: int, total: int, note: str, seconds: float) -> str:
        since = done - self._first
        left = f", {seconds * (total - done) / since:.0f} s left" if since > 0 else ""
        share = done / total if total else 1.0
        more = f" ({note})" if note else ""
        return f"{self.label}: {share:.0%} of {total:,} {self.unit}s{left}{more}"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
