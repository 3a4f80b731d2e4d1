"""Check and time the operators under kernels/ at the sizes of models: the kernels, and other ways to the same result.

Each way is checked first, its result and every gradient against the reference in float64: errors may be twice those of
the reference in the same dtype. One that fails is reported and not timed. Those that pass take turns, one call each a
round, so that a machine that grows slower or busier favours none; given are the median, the lowest and the highest.

mode      forward: without gradients. training: forward, and backward for all gradients
memory    on a GPU what a call allocates at most beside its inputs
GB/s      the least bytes that a call moves, over its time: inputs and result; in training also inputs, result, its
          gradient and all other gradients, for the backward pass
roofline  the time that those bytes and the operations take at this machine's own rates of copying and of multiplying
          matrices, measured in the same run, as a share of the time taken

gain      a way's time over that of the kernels, in the same mode; empty where the kernels were not timed
TFLOP/s   the operations that the operator's formula counts, over the time
checked   in CSV files: whether the way was compared with the reference, for which memory may be too small
warps     of a program, with --compile-only

On a GPU its cache is cleared before every call, and the host runs ahead: its own time does not count. On a CPU cases
are cut to one image. Without a GPU, --compile-only says what the kernels take of one: registers and spills of a thread
in bytes, shared memory of a program in bytes, and the tensor cores' instructions.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from vertebra.backbones._errors import UserError
from vertebra.tools._benchmark import kernel_compiled, kernel_docs
from vertebra.tools._benchmark.kernel_cases import (
    Arguments,
    find_cases,
    find_dtypes,
    main_input,
    make,
    shape_class,
    work,
)
from vertebra.tools._benchmark.kernel_peers import WAYS, Judge, RefusedError, Run, build
from vertebra.tools._benchmark.kernel_timing import Rates, find_rates, peak_mb, step_of, take_turns
from vertebra.tools._common import pick_device
from vertebra.tools._results import Origin, align, append, check_csv, describe, origin

MODES = ("forward", "training")
REPEATS = {"cuda": 100, "cpu": 5}
CPU_IMAGES = 1


@dataclass(frozen=True)
class Row(Origin):
    """One line of the table and of the CSV file; `value` is the median of the repeats."""

    operator: str
    case: str
    shape: str
    dtype: str
    mode: str
    way: str
    value: float
    unit: str
    lowest: float
    highest: float
    repeats: int
    images: int
    peak_memory_mb: float | None
    gb_per_s: float
    tflops: float
    roofline: float
    copy_gb_per_s: float
    matmul_tflops: float
    checked: bool


def measure(
    operator: str, case: str, device: str, dtype: torch.dtype, ways: Sequence[str], repeats: int, rates: Rates
) -> tuple[list[Row], list[str], list[str]]:
    """Check and time one case.

    Returns:
        A row for each mode and way that was timed; one sentence for each way that is no way to compute it here; and one
        for each that failed.
    """
    images = CPU_IMAGES if torch.device(device).type == "cpu" else None
    torch.compiler.reset()  # compilers give up on a function after some sizes
    arguments = make(operator, case, device, dtype, images)
    runs, refused, failed = _checked(operator, arguments, ways)
    least, rows = work(operator, case, dtype, images), []
    for mode in MODES:
        steps: dict[str, Callable[[], None]] = {}
        memory: dict[str, float | None] = {}
        for way, (run, _) in runs.items():
            try:
                step = step_of(run, arguments, mode)
                memory[way] = peak_mb(step, device)
                steps[way] = step
            except Exception as error:  # whatever a compiler or a device may raise ends this way alone
                failed.append(f"{way}, {mode}: {kernel_compiled.say(error)}")
        for way, seconds in take_turns(steps, device, repeats).items():
            taken, task = statistics.median(seconds), least[mode]
            rows.append(
                Row(
                    operator=operator,
                    case=case,
                    shape=shape_class(operator, arguments),
                    dtype=str(dtype).removeprefix("torch."),
                    mode=mode,
                    way=way,
                    value=round(1e3 * taken, 4),
                    unit="ms",
                    lowest=round(1e3 * min(seconds), 4),
                    highest=round(1e3 * max(seconds), 4),
                    repeats=len(seconds),
                    images=len(main_input(arguments)),
                    peak_memory_mb=memory[way],
                    gb_per_s=round(task.bytes / taken / 1e9, 1),
                    tflops=round(task.flops / taken / 1e12, 3),
                    roofline=round(rates.least_seconds(task) / taken, 4),
                    copy_gb_per_s=round(rates.copy / 1e9, 1),
                    matmul_tflops=round(rates.matmul / 1e12, 3),
                    checked=runs[way][1],
                    **origin(device, torch.get_num_threads()),
                )
            )
    return rows, refused, failed


def _checked(
    operator: str, arguments: Arguments, ways: Sequence[str]
) -> tuple[dict[str, tuple[Run, bool]], list[str], list[str]]:
    """The ways that may be timed, and whether they were checked; why others cannot run; and which are wrong."""
    runs: dict[str, tuple[Run, bool]] = {}
    refused, failed = [], []
    try:
        judge = Judge(operator, arguments)
    except torch.OutOfMemoryError:
        judge = None
        failed.append("nothing is checked, because memory is too small for the reference in float64")
    for way in ways:
        try:
            run = build(operator, way, arguments)
            complaint = judge and judge.complaint(run)
        except RefusedError as reason:
            refused.append(f"{way}: {reason}")
        except Exception as error:  # whatever a compiler or a device may raise ends this way alone
            failed.append(f"{way}: {kernel_compiled.say(error)}")
        else:
            if complaint:
                failed.append(f"{way}: {complaint}")
            else:
                runs[way] = run, judge is not None
    return runs, refused, failed


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first; "gain" is a way's time over that of the kernels."""
    ours = {(row.operator, row.case, row.dtype, row.mode): row.value for row in rows if row.way == "triton"}
    names = ("ms", "lowest", "highest", "peak MB", "GB/s", "TFLOP/s", "roofline", "gain")
    lines = [("operator", "case", "dtype", "mode", "way", *names)]
    for row in rows:
        best = ours.get((row.operator, row.case, row.dtype, row.mode))
        numbers = (f"{row.value:.3f}", f"{row.lowest:.3f}", f"{row.highest:.3f}")
        memory = "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"
        rates = (f"{row.gb_per_s:.0f}", f"{row.tflops:.2f}", f"{row.roofline:.0%}")
        gain = f"{row.value / best:.2f}" if best else ""
        lines.append((row.operator, row.case, row.dtype, row.mode, row.way, *numbers, memory, *rates, gain))
    first = rows[0]
    rates = f"copies {first.copy_gb_per_s:.0f} GB/s, products {first.matmul_tflops:.2f} TFLOP/s"
    head = f"{describe(first)}; {rates}; median of {first.repeats} calls"
    if first.device.startswith("cpu"):
        head += f"; cases cut to {first.images} image{'s' if first.images > 1 else ''}"
    return f"{head}\n{align(lines, left=5)}"


def add_parser(kinds: argparse._SubParsersAction, epilog: str) -> None:
    """Add `kernels` to the kinds of benchmark."""
    parser = kinds.add_parser(
        "kernels",
        help="the operators under kernels/: checked, timed against other ways, or only compiled",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="OPERATOR", help="window_attention, say (default: all that have a kernel)")
    add("--device", default=argparse.SUPPRESS, help="cuda, cuda:1, or cpu for plain PyTorch (default: cuda)")
    add("--dtype", metavar="A,B", help="bfloat16, float16, float32 (default: bfloat16; timed on a CPU float32)")
    add("--cases", default="", metavar="PATTERN", help="only cases with this in their names, 'stage 1*224' say")
    add("--ways", metavar="A,B", help=f"{', '.join(WAYS)} (default: all)")
    add("--repeats", type=int, metavar="N", help="calls that are timed, of each way (default: 100, on a CPU 5)")
    add("--compile-only", action="store_true", help="what kernels take of a GPU; needs none")
    add("--target", default="sm_90", metavar="A,B", help="compile for sm_80, sm_90 (default: sm_90)")
    add(
        "--csv",
        type=Path,
        metavar="F",
        help="append the rows to this file, results/kernels.csv say; with "
        "--compile-only they replace those of the same cases in it, results/kernels_compiled.csv say",
    )
    add(
        "--docs",
        action="store_true",
        help="then write docs/kernels.md and its picture anew from results/; by itself, "
        "or with neither --csv nor --compile-only, nothing else",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `benchmark kernels`; the rows of each case are written as soon as it was measured."""
    if args.docs:
        kernel_docs.check()
        if not args.csv and not args.compile_only:
            return kernel_docs.write()
    code = _compile(args) if args.compile_only else _time(args)
    return kernel_docs.write() if args.docs else code


def _compile(args: argparse.Namespace) -> int:
    if args.ways:
        raise UserError("--ways is for times; --compile-only compiles the kernels alone")
    cases = find_cases(args.names, args.cases)
    return kernel_compiled.run(cases, find_dtypes(args.dtype or "bfloat16"), args.target.split(","), args.csv)


def _time(args: argparse.Namespace) -> int:
    cases = find_cases(args.names, args.cases)
    device = find_device(args.device)
    kind = torch.device(device).type
    ways = args.ways.split(",") if args.ways else list(WAYS)
    for way in ways:
        if way not in WAYS:
            raise UserError(f"--ways {way}: known are {', '.join(WAYS)}")
    dtypes = find_dtypes(args.dtype or ("float32" if kind == "cpu" else "bfloat16"))
    if args.csv:
        check_csv(args.csv, Row)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    everything: list[Row] = []
    wrong: list[str] = []
    for dtype in dtypes:
        rates = find_rates(device, dtype)
        for operator, case in cases:
            found = measure(operator, case, device, dtype, ways, args.repeats or REPEATS.get(kind, 5), rates)
            rows, refused, failed = found
            for sentence in refused:
                print(f"not measured: {operator}, {case}, {sentence}", file=sys.stderr)
            wrong += [f"{operator}, {case}, {sentence}" for sentence in failed]
            everything += rows
            if rows and args.csv:
                append(args.csv, rows)
    if everything:
        print(table(everything))
    if wrong:
        raise UserError("; ".join(wrong))
    if not everything:
        raise UserError("nothing was measured: none of the ways can run here")
    return 0


def find_device(asked: str | None) -> str:
    """The device to time on. UserError, which names what can be done instead, where it is a GPU and there is none."""
    if not torch.cuda.is_available() and (asked or "cuda").startswith("cuda"):
        raise UserError(
            "kernels are timed on a CUDA GPU, and there is none here: --compile-only says what they take of one, "
            "--device cpu times plain PyTorch"
        )
    return str(pick_device(asked))
