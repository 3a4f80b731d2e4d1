"""Measure images per second and peak memory of models, forward and training, eager and compiled.

Each case (a model, forward or training, eager or compiled) runs in a process of its own. The cases take turns, one
repeat each a round, so that a machine that grows slower or busier favours none; given are the median of the repeats,
the lowest and the highest.

forward   eval mode, inference_mode
training  train mode: forward, backward and one step of AdamW
memory    on a GPU what PyTorch allocated at most; on a CPU what the process grew by at most since before the model was
          built, compiled cases with what the compiler keeps
numbers   float32, without TF32; random images and weights
"""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from vertebra.backbones import model_names
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import check_model_name
from vertebra.kernels.dispatch import BACKENDS, VARIABLE
from vertebra.tools._benchmark import claims, data_speed, demos, kernels, memory
from vertebra.tools._benchmark.worker import Case, Ready, serve, why_not_compiled
from vertebra.tools._common import make_parser, parse_size, pick_device, run_tool
from vertebra.tools._results import Origin, align, append, check_csv, describe, origin

MODES = ("forward", "training")
REPEATS, SECONDS = 5, 1.0
AT_ONCE = 16
"""Processes that take turns; more models than that are measured in groups, one after the other."""


@dataclass(frozen=True)
class Row(Origin):
    """One line of the table and of the CSV file; `value` is the median of the repeats."""

    model: str
    mode: str
    execution: str
    value: float
    unit: str
    lowest: float
    highest: float
    repeats: int
    peak_memory_mb: float | None
    batch: int
    height: int
    width: int
    precision: str
    kernels: str


def build_parser() -> argparse.ArgumentParser:
    """The command line of `benchmark`; what can be measured is a sub-command each."""
    parser = make_parser(
        "benchmark",
        "Measure speed and memory.",
        "vertebra benchmark models van_b0 resnet50 --batch 8 --threads 2",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="models|kernels|data|memory|claims|demos")
    models = kinds.add_parser(
        "models",
        help="images per second and peak memory of models, forward and training",
        description="\n".join((__doc__ or "").splitlines()),
        epilog=parser.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = models.add_argument
    add(
        "names", nargs="*", metavar="NAME", help="models of vertebra or timm, also van_* (default: van_b0 and the like)"
    )
    add("--device", default=argparse.SUPPRESS, help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")
    add("--batch", type=int, metavar="N", help="images a step (default: 8, on a GPU 64)")
    add("--size", metavar="HxW", help="height and width of the images (default: each model's own)")
    add("--threads", type=int, metavar="N", help="threads of PyTorch on the CPU (default: PyTorch's own choice)")
    add("--mode", choices=MODES, help="measure one of the two (default: both)")
    add("--compile", action="store_true", help="measure torch.compile too; it compiles for minutes")
    add(
        "--kernels",
        metavar="A,B",
        help=f"each model with {VARIABLE} so: auto, {', '.join(BACKENDS)} (default: the environment's)",
    )
    add("--repeats", type=int, default=REPEATS, metavar="N", help=f"repeats of each case (default: {REPEATS})")
    add("--csv", type=Path, metavar="F", help="append the rows to this file, results/models.csv say")
    models.set_defaults(run=run_models)
    kernels.add_parser(kinds, "example:\n  vertebra benchmark kernels window_attention --csv results/kernels.csv")
    data_speed.add_parser(
        kinds, "example:\n  vertebra benchmark data demo/van_b0_digits --data data/digits --workers 1 2"
    )
    memory.add_parser(kinds, "example:\n  vertebra benchmark memory van_b2 --sizes 800x1333 --csv results/memory.csv")
    claims.add_parser(kinds, "example:\n  vertebra benchmark claims hilo --csv results/claims.csv")
    demos.add_parser(kinds, "example:\n  vertebra benchmark demos families --seeds 0 --csv results/learning.csv")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    for name in ("batch", "threads", "repeats"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}, but must be 1 or more")
    return args.run(args)


def run_models(args: argparse.Namespace) -> int:
    """Run `benchmark models`."""
    names = find_names(args.names)
    size = parse_size(args.size) if args.size else None
    device = str(pick_device(args.device))
    if args.csv:
        check_csv(args.csv, Row)
    refused = why_not_compiled(device) if args.compile else None
    if refused:
        print(f"not measured: compiled models, because {refused}", file=sys.stderr)
    batch = args.batch or (8 if device == "cpu" else 64)
    cases = [
        Case(name, mode, compiled, batch, size, device, args.threads, backend)
        for name in names
        for backend in find_kernels(args.kernels)
        for mode in ([args.mode] if args.mode else MODES)
        for compiled in ((False, True) if args.compile and not refused else (False,))
    ]
    rows, failures = measure(cases, args.repeats)
    if rows:
        print(table(rows))
        if args.csv:
            append(args.csv, rows)
    if failures:
        raise UserError("; ".join(failures))
    return 0


def find_names(asked: Sequence[str]) -> list[str]:
    """The models asked for, patterns resolved; the first of each family of ours where none is. UserError if unknown."""
    if not asked:
        firsts = {timm.models.model_entrypoint(name).__module__: name for name in reversed(model_names())}
        return sorted(firsts.values())
    names: list[str] = []
    for name in asked:
        found = timm.list_models(name) if set("*?[") & set(name) else [check_model_name(name)]
        if not found:
            raise UserError(f"no model of timm or vertebra has a name like {name!r}")
        names.extend(found)
    return list(dict.fromkeys(names))


def find_kernels(asked: str | None) -> list[str]:
    """Values of VERTEBRA_KERNELS, separated by commas; the environment's own where none is. UserError if unknown."""
    values = list(dict.fromkeys(asked.split(","))) if asked else [os.environ.get(VARIABLE, "")]
    for value in values if asked else ():
        if value not in ("auto", *BACKENDS):
            raise UserError(f"--kernels {value}: known are auto, {', '.join(BACKENDS)}")
    return values


def measure(cases: Sequence[Case], repeats: int = REPEATS, seconds: float = SECONDS) -> tuple[list[Row], list[str]]:
    """Measure the cases in turns.

    Args:
        cases: what to measure; each runs in a process of its own, `AT_ONCE` of them alive at a time.
        repeats: measurements a case.
        seconds: least time of one.

    Returns:
        One row a case that ran, in order, and one sentence for each reason why others did not.
    """
    rows: list[Row] = []
    reasons: dict[str, list[str]] = {}
    for start in range(0, len(cases), AT_ONCE):
        with _workers(cases[start : start + AT_ONCE]) as workers:
            for _ in range(repeats):
                for worker in workers:
                    worker.repeat(seconds)
            for worker in workers:
                worker.finish()
        rows += [worker.row() for worker in workers if worker.failure is None]
        for worker in workers:
            if worker.failure is not None:
                reasons.setdefault(worker.failure, []).append(str(worker.case))
    return rows, [f"{' and '.join(cases)}: {reason}" for reason, cases in reasons.items()]


class _Worker:
    """This side of a case's process; after a failure nothing more is asked of it."""

    def __init__(self, case: Case) -> None:
        context = multiprocessing.get_context("spawn")  # a copy by fork would share this process's memory and CUDA
        self.case, self.failure, self.rates = case, None, []
        self._connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(case, other), daemon=True)
        self.process.start()
        other.close()
        self.ready: Ready = self._receive()

    def repeat(self, seconds: float) -> None:
        if self.failure is None:
            self._connection.send(seconds)
            self.rates.append(self._receive())

    def finish(self) -> None:
        if self.failure is None:
            self._connection.send(None)
            self.memory = self._receive()

    def close(self) -> None:
        self._connection.close()
        self.process.terminate()
        self.process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self.process.join()
            answer = f"its process ended with code {self.process.exitcode}; -9 mostly means that memory ran out"
        if isinstance(answer, str):
            self.failure = answer
        return answer

    def row(self) -> Row:
        return Row(
            model=self.case.model,
            mode=self.case.mode,
            execution="compiled" if self.case.compiled else "eager",
            value=round(statistics.median(self.rates), 3),
            unit="images/s",
            lowest=round(min(self.rates), 3),
            highest=round(max(self.rates), 3),
            repeats=len(self.rates),
            peak_memory_mb=None if self.memory is None else round(self.memory, 1),
            batch=self.case.batch,
            height=self.ready.size[0],
            width=self.ready.size[1],
            precision="float32",
            kernels=self.case.kernels or "auto",
            **origin(self.case.device, self.ready.threads),
        )


@contextmanager
def _workers(cases: Iterable[Case]) -> Iterator[list[_Worker]]:
    """A warm process for each case, started one after the other; all are ended with the block."""
    workers: list[_Worker] = []
    try:
        for case in cases:
            workers.append(_Worker(case))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first."""
    first = rows[0]
    head = f"{describe(first)}; {first.precision}, batch {first.batch}, median of {first.repeats} repeats"
    lines = [("model", "size", "mode", "execution", "kernels", "images/s", "lowest", "highest", "peak MB")]
    for row in rows:
        peak = "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"
        rates = (f"{rate:.1f}" for rate in (row.value, row.lowest, row.highest))
        lines.append((row.model, f"{row.height}x{row.width}", row.mode, row.execution, row.kernels, *rates, peak))
    return f"{head}\n{align(lines, left=5)}"


if __name__ == "__main__":
    sys.exit(run_tool(main))
