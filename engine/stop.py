"""Ending a run by SIGINT or SIGTERM in good order: the step in progress is finished and saved, then the run ends."""

import signal
import sys
from types import FrameType
from typing import Any


class StopRequest:
    """Remembers the first signal; a second one ends the process the ordinary way.

    Inside `with StopRequest() as stop:` the run asks `stop.signum` between steps.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for known, previous in self._previous.items():
            signal.signal(known, previous)
        name = signal.Signals(signum).name
        print(f"\n{name}: finishing this step, then saving (once more: stop at once).", file=sys.stderr, flush=True)
