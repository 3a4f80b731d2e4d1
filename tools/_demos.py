"""Train the demo configs as a user would, one command each, and keep what they reach and how long they take.

Each seed is a process of its own that begins with nothing trained: a classifier that the config wants first counts into
its time, and so do the imports and the evaluations on the way. The scores are those of `test` on the last checkpoint.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean
from vertebra.tools import make_dataset
from vertebra.tools._results import align, append, check_csv, describe, origin

AIMS = {
    "van_b0": {"top1": 0.97},
    "retinanet": {"box_AP": 0.50},
    "mask-rcnn": {"box_AP": 0.60, "mask_AP": 0.50},
    "semantic-fpn": {"mIoU": 0.55},
}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One line of the table and of the CSV file: a score of one training, and the seconds of that training."""

    demo: str
    seed: int
    metric: str
    value: float
    unit: str
    aim: float
    seconds: float
    device: str
    device_name: str
    threads: int
    torch: str
    timm: str
    vertebra: str
    commit: str
    date: str


def measure(demo: str, seed: int, data: Path, folder: Path) -> list[Row]:
    """Train and test one demo in `folder`.

    Raises:
        UserError: one of the two failed; what it said is above.
    """
    config, work_dir = f"demo/{demo}_digits", folder / f"{demo}_{seed}"
    began = time.perf_counter()
    _run("train", config, "--data", data, "--seed", seed, "--work-dir", work_dir)
    seconds = round(time.perf_counter() - began, 1)
    checkpoint = (work_dir / "last_checkpoint").read_text()
    _run("test", config, checkpoint, "--data", data, "--out", folder / "metrics.json")
    metrics = json.loads((folder / "metrics.json").read_text())
    where = origin("cpu", torch.get_num_threads())
    return [
        Row(demo, seed, name, round(metrics[name], 4), "fraction", aim, seconds, **where)
        for name, aim in AIMS[demo].items()
    ]


def _run(tool: str, *words: object) -> None:
    script = Path(__file__).parent / f"{tool}.py"
    line = [sys.executable, str(script), *map(str, words), "--device", "cpu"]
    if subprocess.run(line, env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode:
        raise UserError(f"{tool} {' '.join(map(str, words))} failed; why is said above")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first."""
    lines = [("demo", "metric", "seed", "value", "asked for", "seconds")]
    for row in rows:
        numbers = (str(row.seed), f"{row.value:.3f}", f"{row.aim:.2f}", f"{row.seconds:.0f}")
        lines.append((row.demo, row.metric, *numbers))
    return f"{describe(rows[0])}\n{align(lines, left=2)}"


def add_parser(kinds: argparse._SubParsersAction, epilog: str) -> None:
    """Add `demos` to the kinds of benchmark."""
    parser = kinds.add_parser(
        "demos",
        help="what the demo configs reach within minutes on a CPU",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="DEMO", help=f"{', '.join(AIMS)} (default: all)")
    add("--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="a training each (default: 0 1 2)")
    add("--csv", type=Path, metavar="F", help="append the rows to this file, results/demos.csv say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `benchmark demos`; the rows of each training are written as soon as it was tested."""
    if args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: the demos are measured on the CPU; `train` takes other devices")
    for name in args.names:
        if name not in AIMS:
            raise UserError(f"{name!r} is no demo; known are {', '.join(AIMS)}." + did_you_mean(name, list(AIMS)))
    if args.csv:
        check_csv(args.csv, Row)
    everything = []
    with TemporaryDirectory() as folder:
        make_dataset.make_digits(Path(folder) / "digits")
        for demo in args.names or AIMS:
            for seed in args.seeds:
                rows = measure(demo, seed, Path(folder) / "digits", Path(folder))
                everything += rows
                if args.csv:
                    append(args.csv, rows)
    print(table(everything))
    return 0
