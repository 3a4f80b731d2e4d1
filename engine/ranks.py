"""Several processes that train one model: how they meet, agree on where all of them end, and notice that one is gone.

What they compute together goes through torch.distributed as mmengine uses it. Beside that stand a few keys in the
store through which they met. A key is asked for and answered over a socket, so no process has to take part.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from textwrap import shorten
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from torch.distributed import distributed_c10d

from ..backbones._errors import UserError

_POLL_SECONDS = 0.05
_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Socket Timeout")


def is_first() -> bool:
    """Whether this process speaks for all, also before they have met."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def several() -> bool:
    """Whether this process has met others."""
    return get_world_size() > 1


def meet_without_gpu(launcher: str, timeout: float | None = None) -> None:
    """Join the processes that torchrun has started, over gloo; mmengine's own way gives each one a GPU.

    Args:
        launcher: `pytorch`.
        timeout: seconds after which a process that waits for another gives up.

    Raises:
        UserError: another launcher, or they did not find each other.
    """
    if launcher != "pytorch":
        raise UserError(f"--launcher {launcher} needs a GPU in each process; on CPUs, start them with torchrun")
    with _saying_who_did_not_meet():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout) if timeout else None, **fresh_store())


def fresh_store() -> dict[str, Any]:
    """What `init_process_group` takes, with a store that holds nothing of an earlier start.

    torchrun keeps one store for all its restarts. What a killed attempt left in it, addresses of processes that are
    gone among them, would be taken for the present one's (pytorch/pytorch#135712). So the processes of each start agree
    on a word, and all keys stand behind that.

    Raises:
        UserError: the processes did not find each other.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    with _saying_who_did_not_meet():
        store, rank, count = next(dist.rendezvous("env://"))
        word = _common_word(store, rank, count)
    return dict(store=dist.PrefixStore(word, store), rank=rank, world_size=count)


def _common_word(store: dist.Store, rank: int, count: int) -> str:
    """The first process's own word, handed to whoever asks for it now; what was asked before is answered in vain."""
    mine, until = uuid4().hex, time.monotonic() + store.timeout.total_seconds()
    if rank:
        store.set(f"asked by {rank}", mine)
        word = store.get(f"told to {mine}").decode()
        store.set(f"{word} heard by {rank}", "yes")
        return word
    missing = set(range(1, count))
    while missing:
        for other in sorted(missing):
            if store.check([f"{mine} heard by {other}"]):
                missing.discard(other)
            elif store.check([f"asked by {other}"]):
                store.set(f"told to {store.get(f'asked by {other}').decode()}", mine)
        if time.monotonic() > until:
            raise RuntimeError(f"processes {sorted(missing)} have not asked for it")
        time.sleep(_POLL_SECONDS)
    return mine


@contextmanager
def _saying_who_did_not_meet() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise UserError(f"process {os.environ.get('RANK')} did not meet the others at {place}: {reason}") from error


def a_peer_is_gone(error: BaseException) -> bool:
    """Whether an error is what the others of a run get when one of its processes has ended."""
    if not several():
        return False
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)


@contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Turn what torch.distributed raises where another process is gone into a sentence.

    Raises:
        UserError: a process of this run is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if a_peer_is_gone(error):
            raise lost_because(error) from error
        raise


class Agreement:
    """What the processes of one run tell each other of its end.

    A process that got a signal proposes a step; all end after it, since none can take that step without the others.
    An evaluation has no steps in common: there each process says that it has seen its share, and either all of them
    go on to add up what they found, or none does.
    """

    _runs = 0  # of this process: two runs, one after the other, have keys of their own

    def __init__(self) -> None:
        Agreement._runs += 1
        self.store = dist.PrefixStore(f"vertebra/{Agreement._runs}", distributed_c10d._get_default_store())
        self.evaluations = 0

    def propose(self, step: int, signum: int) -> None:
        """End after `step`, unless another end was proposed before."""
        self._asking(lambda: self.store.compare_set("end", "", f"{step} {signum}"))

    def end(self) -> tuple[int, int] | None:
        """The step after which all end and the signal that is the reason, None while there is none."""
        said = self._read("end")
        if said is None:
            return None
        step, signum = said.split()
        return int(step), int(signum)

    def leave_evaluation(self) -> None:
        """None of the processes is to add up this evaluation."""
        self._asking(lambda: self.store.compare_set(f"evaluation {self.evaluations}", "", "left"))
        self.evaluations += 1

    def all_have_evaluated(self, asked: Callable[[], bool]) -> bool:
        """Wait until every process has seen its share; False where the evaluation is left before that.

        Args:
            asked: whether the run is to end.
        """
        key = f"evaluation {self.evaluations}"
        if self._asking(lambda: self.store.add(f"{key} arrived", 1)) == get_world_size():
            self._asking(lambda: self.store.compare_set(key, "", "seen"))
        while (verdict := self._read(key)) is None:
            if asked():
                self._asking(lambda: self.store.compare_set(key, "", "left"))
            time.sleep(_POLL_SECONDS)
        self.evaluations += 1
        return verdict == "seen"

    def release(self) -> None:
        """The first process has saved, or could not: the others need not wait for it any longer."""
        with suppress(RuntimeError):  # the others have nothing left to wait for where the store is gone
            self.store.set("released", "yes")

    def wait_for_the_first(self, seconds: float) -> None:
        """Until `release`, or until the store is gone with the first process, or `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if self.store.check(["released"]):
                    return
            except (RuntimeError, ValueError):
                return
            time.sleep(_POLL_SECONDS)

    def _read(self, key: str) -> str | None:
        return self._asking(lambda: self.store.get(key).decode() if self.store.check([key]) else None)

    def _asking(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError as error:
            raise lost_because(error, "the launcher's store does not answer, ") from error


def lost_because(error: BaseException, what: str = "") -> UserError:
    """The sentence of a process that another one, or the launcher, has left alone."""
    reason = shorten((str(error).splitlines() or [type(error).__name__])[0], 160, placeholder=" ...")
    return UserError(
        f"process {get_rank()} ends because another process of this run is gone ({what}{reason}): what that one said "
        "last is the cause; start all of them again with --resume, and the run goes on from its newest checkpoint"
    )
