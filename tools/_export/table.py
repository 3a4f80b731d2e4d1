"""A row of results/exports.csv: the size of an exported file, how well it agrees, and its time beside PyTorch's."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep as pause

import onnxruntime
import torch
from torch import nn
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import parse_size
from vertebra.tools._export.classifier import OnnxReport
from vertebra.tools._export.files import no_empty_folders
from vertebra.tools._export.model import image_size, with_names
from vertebra.tools._export.onnx_graph import open_session
from vertebra.tools._results import Origin, check_csv, origin

TURNS, TURN, PAUSE = 5, 1.0, 0.2
"""Each runtime gets so many turns of so many seconds, or of one run where that takes longer, after so long a pause."""

ASKED = "--static"
"""The reason of a row whose size was fixed because it was asked for."""


@dataclass(frozen=True)
class Row(Origin):
    """One exported file; `difference` is the largest of the checks, in standard deviations of the output
    (or in hundredths of its largest value, where those are larger).

    Times are medians for one image of `height` x `width` on the CPU, in float32 and inference mode, by the same number
    of threads: ONNX Runtime and PyTorch in turn.
    """

    name: str
    task: str
    weights: str
    """`random`, `pretrained`, or `file` for those of a checkpoint."""
    nodes: int
    megabytes: float
    """To the byte, so that a file can be told from another one."""
    opset: int
    free: bool
    """Whether height and width are free."""
    reason: str
    """Why they are not: `ASKED`, or what stood against free ones; empty where they are."""
    options: str
    """What was asked for, as `asked_options` puts it."""
    difference: float
    passed_over: int
    """Images that the checks left aside, as rounding decides there what the model chooses."""
    onnxruntime_ms: float
    pytorch_ms: float
    rounds: int
    height: int
    width: int
    seconds: float
    """What the export took."""
    onnxruntime: str


def asked_options(args: argparse.Namespace) -> str:
    """The options of a command line that change what a file holds beside its weights: `--opset 18 --static 64x64`."""
    size = "x".join(map(str, parse_size(args.static))) if args.static else None
    options = {"--opset": args.opset, "--static": size}
    return " ".join(f"{option} {value}" for option, value in options.items() if value)


@contextlib.contextmanager
def checked_table(path: Path, asked: str | None = None) -> Iterator[None]:
    """A block that appends rows to a file; a folder that was made for it is not left behind empty.

    `asked` is how the file was asked for, if not by `--csv`.

    Raises:
        UserError: rows cannot be appended to the file.
    """
    with no_empty_folders(path.parent):
        check_csv(path, Row, asked)
        yield


def measure(
    classifier: Classifier,
    report: OnnxReport,
    features: bool,
    static: tuple[int, int] | None,
    weights: str = "random",
    options: str = "",
) -> Row:
    """Time an exported file beside its model; the row of both, which tells of their `weights` and `options`."""
    model, _ = with_names(classifier, features)
    channels, height, width = image_size(classifier, static)
    ours, theirs, rounds = take_turns(report.file, model.cpu(), (1, channels, height, width))
    return Row(
        name=classifier.name,
        task="features" if features else "classification",
        weights=weights,
        nodes=report.nodes,
        megabytes=round(report.megabytes, 6),
        opset=report.opset,
        free=report.free_size,
        reason="" if report.free_size else ASKED,
        options=options,
        difference=float(f"{report.difference:.2e}"),
        passed_over=sum(check.passed_over for check in report.checks),
        onnxruntime_ms=round(ours, 3),
        pytorch_ms=round(theirs, 3),
        rounds=rounds,
        height=height,
        width=width,
        seconds=round(report.seconds, 1),
        onnxruntime=onnxruntime.__version__,
        **origin("cpu", torch.get_num_threads()),
    )


def take_turns(file: Path, model: nn.Module, shape: tuple[int, ...]) -> tuple[float, float, int]:
    """Median milliseconds of ONNX Runtime and of PyTorch for images of a shape, and the fewest runs of one of them.

    The two take turns, so that a machine that grows slower or busier favours neither. Turns are of many runs, and
    apart, because the threads of ONNX Runtime stay busy for 50 ms after each run, in wait for the next one: PyTorch
    between two runs would have its cores half. The first run of each is left out.
    """
    session, images = open_session(file), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    feed = {"image": images.numpy()}
    times: tuple[list[float], list[float]] = [], []
    with torch.inference_mode():
        session.run(None, feed)
        model(images)
        for _ in range(TURNS):
            for found, run in zip(times, (lambda: session.run(None, feed), lambda: model(images)), strict=True):
                pause(PAUSE)
                end = time.perf_counter() + TURN
                found.append(_milliseconds(run))
                while time.perf_counter() < end:
                    found.append(_milliseconds(run))
    ours, theirs = times
    return statistics.median(ours), statistics.median(theirs), min(len(ours), len(theirs))


def _milliseconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1000
