"""How `benchmark kernels` takes time and memory of calls, and what the device itself reaches."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vertebra.tools._benchmark.kernel_cases import Arguments, Work, learned
from vertebra.tools._benchmark.kernel_peers import Run

_CLEARS, _CACHE = 16, 2**28
"""So many times so many bytes are written before a call: more than caches hold, and time for the host to lead."""


@dataclass(frozen=True)
class Rates:
    """What a device reaches: copying, in bytes a second, and matrices multiplied, in operations a second."""

    copy: float
    matmul: float

    def least_seconds(self, task: Work) -> float:
        """The roofline: no call takes less."""
        return max(task.bytes / self.copy, task.flops / self.matmul)


def step_of(run: Run, arguments: Arguments, mode: str) -> Callable[[], None]:
    """What is timed: "forward" without gradients, or "training", forward and backward for all of them."""
    if mode == "forward":

        def forward() -> None:
            with torch.no_grad():
                run(arguments)

        return forward
    leaves, grad = learned(arguments), torch.ones_like(run(arguments).detach())

    def training() -> None:
        torch.autograd.grad(run(arguments), leaves, grad, materialize_grads=True)

    return training


def peak_mb(step: Callable[[], None], device: str) -> float | None:
    """Warm the step up; on a GPU, the most that it allocates."""
    step()
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)


def take_turns(steps: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call of each step."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    time_once = _gpu_timer(device) if torch.device(device).type == "cuda" else _cpu_seconds
    for _ in range(repeats):
        for way, step in steps.items():
            seconds[way].append(time_once(step))
    return seconds


def _cpu_seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _gpu_timer(device: str) -> Callable[[Callable[[], None]], float]:
    cache = torch.empty(_CACHE, dtype=torch.int8, device=device)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(step: Callable[[], None]) -> float:
        with torch.cuda.device(device):
            for _ in range(_CLEARS):
                cache.zero_()
            began.record()
            step()
            ended.record()
            ended.synchronize()
        return began.elapsed_time(ended) / 1e3

    return seconds


def find_rates(device: str, dtype: torch.dtype) -> Rates:
    """The device's own rates, the best of some tries."""
    large = torch.device(device).type == "cuda"
    source = torch.empty(2**30 if large else 2**27, dtype=torch.int8, device=device)
    target, side = torch.empty_like(source), 8192 if large else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    steps: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}
    for step in steps.values():
        step()
    taken = {name: min(its) for name, its in take_turns(steps, device, 10).items()}
    return Rates(2 * source.numel() / taken["copy"], 2 * side**3 / taken["matmul"])
