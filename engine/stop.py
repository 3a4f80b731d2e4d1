"""Ending a run by SIGINT or SIGTERM in good order: the step in progress is finished and saved, then the run ends.

Of several processes it is enough that one gets the signal. All end after the same step, and the first one saves, which
takes no call that others have to join. One of several whose step does not end within the time of grace ends by
itself: 20 seconds, or as many as the variable VERTEBRA_GRACE_SECONDS says. torchrun kills 30 seconds after its SIGTERM.
"""

import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

from mmengine.dist import get_rank, get_world_size

from ..backbones._errors import Interrupted
from .ranks import Agreement, several
from .watch import ENDED, GONE, Watch

_OTHERS_SECONDS = 600  # that the others wait while the first writes; who runs the job decides before that


class StopRequest:
    """Remembers the first signal. Alone, a process that gets a second one ends the ordinary way.

    Inside `with StopRequest() as stop:` the run asks `stop.due` between steps and `stop.asked` within evaluations.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.agreement = Agreement() if several() else None
        self._previous: dict[int, Any] = {}
        self._watch = Watch(self.agreement.store, get_rank(), get_world_size()) if self.agreement else None

    def __enter__(self) -> "StopRequest":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._remember)
        if self._watch is not None:
            self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._watch is not None:
            self._watch.end(ENDED if kind is None or issubclass(kind, Interrupted) else GONE)
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
        if self.agreement.all_have_evaluated(lambda: self.asked(step, group)):
            return True
        self.asked(step, group)  # for the signal, which another process may have got and told after we looked
        return False

    def leave_evaluation(self) -> None:
        """Have the others leave the evaluation that this process leaves."""
        if self.agreement is not None:
            self.agreement.leave_evaluation()

    def _propose(self, step: int, group: int) -> None:
        # the others may be in the step after this one already, but none can end it alone
        assert self.agreement is not None
        assert self.signum is not None
        self.agreement.propose(step // group * group + group, self.signum)

    def patience(self, saving: bool = False) -> AbstractContextManager[None]:
        """Inside, what is done is not cut off by the time of grace: saving, and adding up an evaluation."""
        return self._watch.patience(saving) if self._watch is not None else nullcontext()

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
            said = f"{name} to process {get_rank()}: all end after the same step, and the first saves, if all answer."
            print(f"\n{said}", file=sys.stderr, flush=True)
