"""Inference of one image in this process, which does nothing else: prints its peak memory and time as JSON.

    python -m vertebra.tools._benchmark.memory_worker MODEL HEIGHT WIDTH THREADS REPEATS

A peak is of resident memory since the process began: Python, PyTorch, the weights and the run together. float32,
eval mode, inference_mode; random image and weights. It is not in a module with the command that starts it, which would
bring its own imports along.
"""

import json
import resource
import sys
import time
from pathlib import Path

import timm
import torch
import vertebra  # noqa: F401  registers the names

_STATUS = Path("/proc/self/status")


def measure(name: str, size: tuple[int, int], threads: int, repeats: int) -> dict[str, float]:
    """`before`, `peak` and `repeated` in GiB; `seconds` and `cpu_seconds`, the best of `repeats` runs behind the first.

    Without repeats the first one counts.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    image = torch.randn(1, 3, *size)
    before = _gib("VmRSS")
    seconds, cpu_seconds, peaks = [], [], []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            began, cpu_began = time.perf_counter(), time.process_time()
            model(image)
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
            peaks.append(_gib("VmHWM"))
    best = {"seconds": min(seconds[1:] or seconds), "cpu_seconds": min(cpu_seconds[1:] or cpu_seconds)}
    return {"before": before, "peak": peaks[0], "repeated": peaks[-1], **best}


def _gib(entry: str) -> float:
    """Resident memory, now (VmRSS) or at most (VmHWM); where there is no /proc, at most in both cases.

    Linux's getrusage would not do: a process inherits its parent's peak there.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(entry))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


if __name__ == "__main__":
    model_name, *numbers = sys.argv[1:]
    height, width, threads, repeats = map(int, numbers)
    print(json.dumps(measure(model_name, (height, width), threads, repeats)))
