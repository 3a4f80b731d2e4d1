"""Ending a run by SIGINT or SIGTERM in good order: the step in progress is finished and saved, then the run ends.

Of several processes it is enough that one gets the signal. All end after the same step, and the first one saves, which
takes no call that others have to join. A process whose step does not end, because another one is gone, ends by itself
after 20 seconds, or as many as the variable VERTEBRA_GRACE_SECONDS says: torchrun kills 30 seconds after its SIGTERM.
"""

import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

from mmengine.dist import get_rank

from ..backbones._errors import UserError
from .ranks import Agreement, several

_GRACE, _GRACE_SECONDS = "VERTEBRA_GRACE_SECONDS", 20.0
_OTHERS_SECONDS = 600  # that the others wait while the first writes; who runs the job decides before that


def grace_seconds() -> float:
    """How long a process may take from a signal to the end of its step, where there are several.

    Raises:
        UserError: the variable holds no number.
    """
    text = os.environ.get(_GRACE) or str(_GRACE_SECONDS)
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{_GRACE} is {text!r}; a number of seconds is accepted") from error


class StopRequest:
    """Remembers the first signal. Alone, a process that gets a second one ends the ordinary way.

    Inside `with StopRequest() as stop:` the run asks `stop.due` between steps and `stop.asked` within evaluations.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.agreement = Agreement() if several() else None
        self._previous: dict[int, Any] = {}
        self._watch = _Watch() if several() else None

    def __enter__(self) -> "StopRequest":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._remember)
        if self._watch is not None:
            self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._watch is not None:
            self._watch.end()
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def due(self, step: int, group: int = 1) -> bool:
        """Whether the run ends here, `step` steps after its beginning, of which `group` make one of the optimizer."""
        if self.agreement is None:
            return self.signum is not None and step % group == 0
        if self.signum is not None:
            self._propose(step, group)
        end = None if step % group else self.agreement.end()
        if end is None:
            return False
        self.signum = end[1]
        return step >= end[0]

    def asked(self, step: int, group: int = 1) -> bool:
        """Whether any process got a signal; `step` and `group` as in `due`."""
        if self.agreement is None:
            return self.signum is not None
        if self.signum is not None:
            self._propose(step, group)
        end = self.agreement.end()
        if end is not None:
            self.signum = end[1]
        return end is not None

    def all_have_evaluated(self, step: int, group: int = 1) -> bool:
        """Wait for the others at the end of an evaluation; False where all leave it instead."""
        if self.agreement is None:
            return not self.asked(step, group)
        return self.agreement.all_have_evaluated(lambda: self.asked(step, group))

    def leave_evaluation(self) -> None:
        """Have the others leave the evaluation that this process leaves."""
        if self.agreement is not None:
            self.agreement.leave_evaluation()

    def _propose(self, step: int, group: int) -> None:
        # the others may be in the step after this one already, but none can end it alone
        assert self.agreement is not None
        assert self.signum is not None
        self.agreement.propose(step // group * group + group, self.signum)

    def take_your_time(self) -> None:
        """What follows, saving and waiting for who saves, is not cut off after the time of grace."""
        if self._watch is not None:
            self._watch.patient = True

    def wait_for_the_first(self) -> None:
        """Return once the first process has saved: a launcher kills the others as soon as one has ended."""
        if self.agreement is not None:
            self.agreement.wait_for_the_first(_OTHERS_SECONDS)

    def release(self) -> None:
        """Let the others end."""
        if self.agreement is not None:
            self.agreement.release()

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None
        self.signum = signum
        name = signal.Signals(signum).name
        if self.agreement is None:
            for known, previous in self._previous.items():
                signal.signal(known, previous)
            print(f"\n{name}: finishing this step, then saving (once more: stop at once).", file=sys.stderr, flush=True)
        elif not again:  # a launcher passes on what the scheduler has sent to every process itself
            said = f"{name} to process {get_rank()}: all end after the same step, and the first one saves."
            print(f"\n{said}", file=sys.stderr, flush=True)


class _Watch(threading.Thread):
    """Ends a process whose main thread is held by a step that does not end.

    A handler of a signal runs between two instructions of the main thread, so not while that waits for another process
    in C++. The wake-up descriptor is written to all the same.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="watch over signals")
        self.patient = False
        self.grace = grace_seconds()
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._before = -1

    def start(self) -> None:
        """From here on, in the main thread."""
        self._before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        super().start()

    def end(self) -> None:
        """The main thread is out of the run."""
        signal.set_wakeup_fd(self._before)
        self._theirs.setblocking(True)
        self._theirs.sendall(b"\0")
        self.join()
        self._ours.close()
        self._theirs.close()

    def run(self) -> None:
        """Wait for a signal, then for the end of the run."""
        signum = 0
        while True:
            self._ours.settimeout(self.grace if signum else None)
            try:
                heard = self._ours.recv(1)[0]
            except TimeoutError:
                if not self.patient:
                    self._leave(signum)
                signum = 0
                continue
            if heard == 0:
                return
            if heard in (signal.SIGINT, signal.SIGTERM):
                signum = heard

    def _leave(self, signum: int) -> None:
        name = signal.Signals(signum).name
        print(
            f"error: {name} came to process {get_rank()} and its step has not ended within {self.grace:g} s "
            f"({_GRACE}): it ends without saving, and --resume goes on from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + signum)
