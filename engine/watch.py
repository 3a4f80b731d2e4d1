"""A thread beside training in several processes, which ends a process that would wait in vain.

The main thread may be held by C++: in a collective call whose partner is gone, or in one that takes long. It hears of
no signal there and of no lost peer; over NCCL it would wait for many minutes. So this thread hears of signals through
the wake-up descriptor, and tells the others through the store that the process lives.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

from ..backbones._errors import UserError

_GRACE, _GRACE_SECONDS = "VERTEBRA_GRACE_SECONDS", 20.0
_SILENCE, _SILENCE_SECONDS = "VERTEBRA_PEER_SECONDS", 60.0
ENDED, GONE = "ended", "gone"
_NEIGHBOURS = (
    8  # to whom a process listens: all to all would be too many questions in large jobs, and one missed is enough
)


def seconds_of(variable: str, usual: float) -> float:
    """A number of seconds from the environment.

    Raises:
        UserError: the variable holds no number.
    """
    text = os.environ.get(variable) or str(usual)
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{variable} is {text!r}; a number of seconds is accepted") from error


def grace_seconds() -> float:
    """How long a process of several may take from a signal to the end of its step."""
    return seconds_of(_GRACE, _GRACE_SECONDS)


class Watch(threading.Thread):
    """See the module's docstring.

    Args:
        store: where the processes of this run leave word; a connection of its own is made to it.
        rank, count: of this process, and of all.
        leave: ends the process with an exit code; for tests.
    """

    def __init__(self, store: dist.Store, rank: int, count: int, leave: Callable[[int], None] = os._exit) -> None:
        super().__init__(daemon=True, name="watch")
        self.store, self.rank, self.leave = store.clone(), rank, leave
        self.grace, self.silence = grace_seconds(), seconds_of(_SILENCE, _SILENCE_SECONDS)
        self.beat = min(self.silence / 4, 5.0)
        neighbours = [(rank + place) % count for place in range(1, min(count, _NEIGHBOURS + 1))]
        self.others = {other: ("", time.monotonic()) for other in neighbours}
        self.beats, self.busy, self.saving, self.heard = 0, 0, 0, time.monotonic()
        self.signum, self.until = 0, float("inf")
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.before = -1

    def start(self) -> None:
        """From here on; in the main thread."""
        self.before = signal.set_wakeup_fd(self.theirs.fileno(), warn_on_full_buffer=False)
        super().start()

    def end(self, word: str) -> None:
        """The main thread is out of the run, which for the others is `ENDED` or `GONE`."""
        signal.set_wakeup_fd(self.before)
        self.theirs.setblocking(True)
        self.theirs.sendall(b"\0")
        self.join()
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host
            self.store.set(f"alive {self.rank}", word)
        self.ours.close()
        self.theirs.close()

    @contextlib.contextmanager
    def patience(self, saving: bool = False) -> Iterator[None]:
        """Inside, no time of grace runs out: what is done there ends by itself. While saving, no peer is missed."""
        self.busy += 1
        self.saving += saving
        try:
            yield
        finally:
            self.busy -= 1
            self.saving -= saving

    def run(self) -> None:
        """Listen for signals, and to the others, until the run is over."""
        tick = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= tick:
                tick = now + self.beat
                self._listen(now)
            if now >= self.until and not self.busy:
                self._say(128 + self.signum, self._late())
            wait = min(tick, self.until if self.until > now else now + 0.5) - now
            self.ours.settimeout(max(wait, 0.01))
            try:
                heard = self.ours.recv(1)[0]
            except TimeoutError:
                continue
            if heard == 0:
                return
            if heard in (signal.SIGINT, signal.SIGTERM) and not self.signum:
                self.signum, self.until = heard, time.monotonic() + self.grace

    def _listen(self, now: float) -> None:
        self.beats += 1
        try:
            self.store.set(f"alive {self.rank}", str(self.beats))
            for other in self.others:
                key = f"alive {other}"
                word = self.store.get(key).decode() if self.store.check([key]) else ""
                if word != self.others[other][0]:
                    self.others[other] = (word, now)
        except RuntimeError:  # the store is gone, with its host: the main thread may hear nothing of that over NCCL
            if now - self.heard > self.silence and not self.saving:
                self._say(2, self._alone(now - self.heard))
            return
        self.heard = now
        for other, (word, since) in self.others.items():
            patience = 3 * self.beat if word == GONE else self.silence
            if word != ENDED and now - since > patience and not self.saving:
                self._say(2, self._missing(other, now - since))

    def _late(self) -> str:
        return (
            f"{signal.Signals(self.signum).name} came to process {self.rank} and its step has not ended within "
            f"{self.grace:g} s ({_GRACE}): it ends without saving, and --resume goes on from the newest checkpoint"
        )

    def _missing(self, other: int, seconds: float) -> str:
        return self._gone(f"nothing was heard of process {other} for {seconds:.0f} s, {_SILENCE}")

    def _alone(self, seconds: float) -> str:
        return self._gone(f"the one that keeps what all say has not answered for {seconds:.0f} s, {_SILENCE}")

    def _gone(self, sign: str) -> str:
        return (
            f"process {self.rank} ends because another process of this run is gone ({sign}): what that one said last "
            "is the cause; start all of them again with --resume, and the run goes on from its newest checkpoint"
        )

    def _say(self, code: int, sentence: str) -> None:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        self.leave(code)
