"""A row of results/exports.csv: the size of an exported file, how well it agrees, and its time beside PyTorch's."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import nn
from vertebra.tools._classifier import Classifier
from vertebra.tools._export_model import image_size, with_names
from vertebra.tools._onnx_export import OnnxReport
from vertebra.tools._onnx_graph import open_session
from vertebra.tools._results import origin

SECONDS, LEAST, MOST = 10.0, 3, 50
"""Rounds go on for so many seconds, at least and at most so many of them."""


@dataclass(frozen=True)
class Row:
    """One exported file; `difference` is the largest of the checks, in standard deviations of the output.

    Times are medians for one image of `height` x `width` on the CPU, in float32 and inference mode, by the same number
    of threads: ONNX Runtime and PyTorch in turn.
    """

    name: str
    task: str
    nodes: int
    megabytes: float
    opset: int
    free: bool
    """Whether height and width are free."""
    difference: float
    onnxruntime_ms: float
    pytorch_ms: float
    rounds: int
    height: int
    width: int
    seconds: float
    """What the export took."""
    onnxruntime: str
    device: str
    device_name: str
    threads: int
    torch: str
    timm: str
    vertebra: str
    commit: str
    date: str


def measure(classifier: Classifier, report: OnnxReport, features: bool, static: tuple[int, int] | None) -> Row:
    """Time an exported file beside its model; the row of both."""
    model, _ = with_names(classifier, features)
    channels, height, width = image_size(classifier, static)
    ours, theirs, rounds = take_turns(report.file, model.cpu(), (1, channels, height, width))
    return Row(
        name=classifier.name,
        task="features" if features else "classification",
        nodes=report.nodes,
        megabytes=round(report.megabytes, 2),
        opset=report.opset,
        free=report.free_size,
        difference=float(f"{report.difference:.2e}"),
        onnxruntime_ms=round(ours, 2),
        pytorch_ms=round(theirs, 2),
        rounds=rounds,
        height=height,
        width=width,
        seconds=round(report.seconds, 1),
        onnxruntime=onnxruntime.__version__,
        **origin("cpu", torch.get_num_threads()),
    )


def take_turns(file: Path, model: nn.Module, shape: tuple[int, ...]) -> tuple[float, float, int]:
    """Median milliseconds of ONNX Runtime and of PyTorch for images of a shape, and the number of rounds.

    The two take turns, so that a machine that grows slower or busier favours neither. The first run of each is left
    out.
    """
    session, images = open_session(file), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    feed = {"image": images.numpy()}
    ours, theirs = [], []
    with torch.inference_mode():
        session.run(None, feed)
        model(images)
        began = time.perf_counter()
        while len(ours) < LEAST or (len(ours) < MOST and time.perf_counter() - began < SECONDS):
            ours.append(_milliseconds(lambda: session.run(None, feed)))
            theirs.append(_milliseconds(lambda: model(images)))
    return statistics.median(ours), statistics.median(theirs), len(ours)


def _milliseconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1000
