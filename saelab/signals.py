"""Ctrl-C and SIGTERM as a request that the work looks at when it is ready."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, final

__all__ = ["StopRequest"]


@final
class StopRequest:
    """Within the block, SIGINT and SIGTERM set `asked` instead of ending the process.

    A second SIGINT interrupts at once. Outside the main thread signals cannot be caught, and the
    block changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        self.name = signal.Signals(number).name
