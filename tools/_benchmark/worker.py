"""One case of a benchmark, in a process of its own: a model that runs on, or learns from, random images.

A process for each case keeps its peak memory its own, and lets the cases take turns: each waits between repeats.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import vertebra  # noqa: F401  registers the names
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.kernels.dispatch import VARIABLE, BackendError, UnknownBackendError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Case:
    """What one process measures: `size` None takes the model's own, `threads` None PyTorch's default.

    `kernels` is what VERTEBRA_KERNELS is set to there.
    """

    model: str
    mode: str
    compiled: bool
    batch: int
    size: tuple[int, int] | None
    device: str
    threads: int | None
    kernels: str = ""

    def __str__(self) -> str:
        kernels = f", {VARIABLE}={self.kernels}" if self.kernels else ""
        return f"{self.model}, {self.mode}{', compiled' if self.compiled else ''}{kernels}"


@dataclass(frozen=True)
class Ready:
    """A case that is built and warm, and what it turned out to be."""

    size: tuple[int, int]
    threads: int


def serve(case: Case, connection: Connection) -> None:
    """Build the case, send `Ready`, then images per second for each number of seconds received; None ends it.

    The last message is the peak memory in MB, None where it is not known; a failure is sent as its text.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process gets it too, and closes the connection
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            before, step, ready = _prepare(case)
            connection.send(ready)
            while (seconds := connection.recv()) is not None:
                connection.send(_images_per_second(case, step, seconds))
            connection.send(_peak_mb(case.device, before))
        except Exception as error:  # whatever a model, a compiler or a device may raise ends this case alone
            connection.send(first_line(error))


def first_line(error: Exception) -> str:
    """The first line of an error's text, after its type where it is not one of our own sentences."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and isinstance(error, BackendError | UnknownBackendError | UserError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _prepare(case: Case) -> tuple[float, Callable[[], None], Ready]:
    """Memory in use before the model was built, one step of the case, and its description; two steps are done."""
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    os.environ[VARIABLE] = case.kernels
    before = _resident_mb("VmRSS")
    model: Any = timm.create_model(case.model).to(case.device)
    size = case.size or tuple(model.pretrained_cfg["input_size"][-2:])
    images = torch.randn(case.batch, 3, *size, device=case.device)
    step = _training_step(model, images, case.compiled) if case.mode == "training" else _forward(model, images, case)
    for _ in range(2):
        step()
    _synchronize(case.device)
    _reset_peak(case.device)
    return before, step, Ready(size, torch.get_num_threads())


def _forward(model: nn.Module, images: Tensor, case: Case) -> Callable[[], None]:
    model.eval()
    run = torch.compile(model) if case.compiled else model

    def step() -> None:
        with torch.inference_mode():
            run(images)

    return step


def _training_step(model: nn.Module, images: Tensor, compiled: bool) -> Callable[[], None]:
    """Forward, backward and AdamW; the rate is 0, so that the numbers stay tame however often it is repeated."""
    model.train()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        run(images).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _images_per_second(case: Case, step: Callable[[], None], seconds: float) -> float:
    """Rate over at least `seconds`; the step before it, which wakes threads and caches, does not count."""
    step()
    _synchronize(case.device)
    began, steps = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds or not steps:
        step()
        _synchronize(case.device)
        steps += 1
    return steps * case.batch / taken


def _synchronize(device: str) -> None:
    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def _reset_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # Linux: the high-water mark starts again from what is in use


def _peak_mb(device: str, before: float) -> float | None:
    """On a GPU what PyTorch had allocated at most; on the CPU what the process grew by at most; None elsewhere."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return _resident_mb("VmHWM") - before if kind == "cpu" else None


def _resident_mb(entry: str) -> float:
    """Memory of this process, now (VmRSS) or at most (VmHWM); where there is no /proc, at most in both cases."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(entry))
        return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def why_not_compiled(device: str) -> str | None:
    """What torch.compile lacks here for the device, or None."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    on_cpu = device == "cpu"
    variable, names = ("CXX", ("g++", "clang++")) if on_cpu else ("CC", ("gcc", "clang"))
    asked = os.environ.get(variable)
    if not any(map(shutil.which, [asked] if asked else names)):
        return f"there is no {'C++' if on_cpu else 'C'} compiler ({asked or ' or '.join(names)}) on this machine"
    if not header.is_file():
        return f"Python's headers are missing ({header})"
    return None
