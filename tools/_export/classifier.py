"""A classifier, or its feature maps, as an ONNX file that agrees with it."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from vertebra.tools._classifier import Classifier
from vertebra.tools._export.checks import Report, check_sizes, compare, run_pytorch
from vertebra.tools._export.files import check_target, new_file
from vertebra.tools._export.model import image_size, metadata, to_properties, with_names
from vertebra.tools._export.onnx_graph import FREE_SIZE, answers, check_graph, check_opset, describe, save, trace

LEAST_SIDE = 128
"""Sides of the traced image at least, where sizes are free: a map of a single pixel would be taken for a fixed one."""


@dataclass(frozen=True, kw_only=True)
class OnnxReport(Report):
    """The report of an ONNX file, with the size of its graph and the version of its operators."""

    nodes: int
    opset: int


def export(
    classifier: Classifier,
    out: str | Path,
    features: bool = False,
    static: tuple[int, int] | None = None,
    opset: int | None = None,
) -> OnnxReport:
    """Write a classifier, or its feature maps, as an ONNX file that agrees with it.

    Args:
        classifier: the model, with the labels and the image preparation that go into the file's metadata.
        out: the file to write; an ONNX file that stands there is replaced, and only by one that passed every check.
        features: export what `features_only=True` returns, each map named by its stride.
        static: height and width to fix; None leaves them free.
        opset: version of the standard operators, 18 or newer; None takes PyTorch's default.

    Raises:
        UserError: the file cannot be written, the model or the options cannot be exported, or the results differ.
    """
    out = Path(out)
    check_opset(opset)
    check_target(out)
    model, names = with_names(classifier, features)
    channels, height, width = image_size(classifier, static)
    shapes = [(batch, channels, *(static or size)) for batch, *size in check_sizes(height, width)]
    with new_file(out) as temporary:
        expected = [run_pytorch(classifier.name, model, shape, static is not None) for shape in shapes]
        began = time.perf_counter()
        sides = (height, width) if static else (max(height, LEAST_SIDE), max(width, LEAST_SIDE))
        free = {0: "batch"} if static else FREE_SIZE
        program = trace(classifier.name, model, torch.zeros(2, channels, *sides), names, free, opset)
        describe(program, to_properties(metadata(classifier, features, (channels, height, width))))
        data_file = save(program, temporary)
        seconds = time.perf_counter() - began
        nodes, found_opset = check_graph(temporary, opset)
        checks = compare(model, answers(temporary), expected, fixed=static is not None)
        megabytes = sum(path.stat().st_size for path in temporary.parent.iterdir()) / 1e6
    return OnnxReport(
        file=out,
        data_file=out.with_name(data_file.name) if data_file else None,
        details=f"opset {found_opset}, {nodes} nodes",
        megabytes=megabytes,
        seconds=seconds,
        outputs=tuple(names),
        free_size=static is None,
        checks=checks,
        nodes=nodes,
        opset=found_opset,
    )
