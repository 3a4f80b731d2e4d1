"""Measure the peak memory and the time of one image, and how both grow with it.

Each model runs at each size in a fresh process: float32, eval mode, inference_mode, random image and weights.

peak      resident memory of that process at most when the image was through: Python, PyTorch, weights and run together
repeated  the same after the repeats: allocators keep some of what is freed
before    the same when the model and the image were there and nothing had run
seconds   by the clock, and cpu of all threads, which other processes disturb less: the best of the repeats; the first
          run does not count
growth    from the smallest size to the largest: of pixels, of what the run added to memory, and of CPU time
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vertebra.backbones._errors import UserError
from vertebra.backbones._names import check_model_name
from vertebra.tools._common import parse_size
from vertebra.tools._results import Origin, align, append, check_csv, describe, origin

MODELS = (
    "van_b2",
    "biformer_small",
    "transnext_tiny",
    "litv2_small",
    "cswin_small",
    "l2vit_small",
    "davit_small_fused",
    "maxvit_small_tf_224_fused",
    "shvit_s4_fused",
)
SIZES = ("400x667", "800x1333")
THREADS, REPEATS = 2, 3


@dataclass(frozen=True)
class Row(Origin):
    """One number of one model at one size; `quantity` is peak, repeated, before, seconds or cpu_seconds."""

    model: str
    height: int
    width: int
    quantity: str
    value: float
    unit: str
    precision: str


def measure(name: str, size: tuple[int, int], threads: int = THREADS, repeats: int = REPEATS) -> dict[str, float]:
    """Run the model in a process of its own: `before`, `peak` and `repeated` in GiB, `seconds` and `cpu_seconds`.

    Raises:
        UserError: it did not run; says why.
    """
    numbers = map(str, (*size, threads, repeats))
    command = [sys.executable, "-P", "-m", "vertebra.tools._benchmark.memory_worker", name, *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        sentence = said[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        raise UserError(f"{name} at {size[0]}x{size[1]}: {sentence[:200]}")
    return json.loads(done.stdout)


def rows_of(name: str, size: tuple[int, int], measured: dict[str, float], threads: int) -> list[Row]:
    """The rows of what `measure` returned."""
    units = {"peak": "GiB", "repeated": "GiB", "before": "GiB", "seconds": "s", "cpu_seconds": "s"}
    return [
        Row(name, *size, quantity, round(measured[quantity], 4), unit, "float32", **origin("cpu", threads))
        for quantity, unit in units.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """One line a model and size, and one a model for its growth where it ran at several sizes."""
    found: dict[str, dict[tuple[int, int], dict[str, float]]] = {}
    for row in rows:
        found.setdefault(row.model, {}).setdefault((row.height, row.width), {})[row.quantity] = row.value
    lines = [("model", "size", "peak GiB", "repeated", "before", "seconds", "cpu")]
    for name, sizes in found.items():
        for (height, width), its in sizes.items():
            numbers = (f"{its[quantity]:.2f}" for quantity in ("peak", "repeated", "before", "seconds", "cpu_seconds"))
            lines.append((name, f"{height}x{width}", *numbers))
    text = [describe(rows[0]), align(lines, left=2)]
    return "\n".join([*text, *(_growth(name, sizes) for name, sizes in found.items() if len(sizes) > 1)])


def _growth(name: str, sizes: dict[tuple[int, int], dict[str, float]]) -> str:
    small, large = min(sizes), max(sizes)
    added = [sizes[size]["peak"] - sizes[size]["before"] for size in (small, large)]
    pixels = large[0] * large[1] / (small[0] * small[1])
    seconds = sizes[large]["cpu_seconds"] / sizes[small]["cpu_seconds"]
    return f"growth of {name}: {pixels:.1f} x pixels, {added[1] / added[0]:.1f} x memory, {seconds:.1f} x time"


def add_parser(kinds: argparse._SubParsersAction, epilog: str) -> None:
    """Add `memory` to the kinds of benchmark."""
    parser = kinds.add_parser(
        "memory",
        help="peak memory and time of one image, each model at each size in a fresh process",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="models of vertebra or timm (default: one of medium size a family)")
    add("--sizes", nargs="+", default=list(SIZES), metavar="HxW", help=f"(default: {' '.join(SIZES)})")
    add("--threads", type=int, default=THREADS, metavar="N", help=f"threads of PyTorch (default: {THREADS})")
    add("--repeats", type=int, default=REPEATS, metavar="N", help=f"runs that are timed (default: {REPEATS})")
    add("--csv", type=Path, metavar="F", help="append the rows to this file, results/memory.csv say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `benchmark memory`; each model's rows are written as soon as it is done."""
    if args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: memory is measured on the CPU; `benchmark models` has other devices")
    names, sizes = [check_model_name(name) for name in args.names or MODELS], [parse_size(s) for s in args.sizes]
    if args.csv:
        check_csv(args.csv, Row)
    everything = []
    for name in names:
        rows = [
            row
            for size in sizes
            for row in rows_of(name, size, measure(name, size, args.threads, args.repeats), args.threads)
        ]
        everything += rows
        if args.csv:
            append(args.csv, rows)
    print(table(everything))
    return 0
