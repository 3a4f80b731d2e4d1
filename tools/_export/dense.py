"""A detector or segmenter of mmdet or mmseg as an ONNX file: whole, or the maps of its backbone and neck.

Segmenters   `image` (batch, 3, height, width) -> `logits` (batch, classes, height, width); batch and sizes are free
Detectors    `image` (1, 3, height, width) -> `boxes` (N, 4) as x0, y0, x1, y1 in pixels of that image, `scores` (N,),
             `labels` (N,), and of Mask R-CNN `masks` (N, 1, h, w) within the boxes, 0 to 1; best first
--features   `image` (batch, 3, height, width) -> maps `stride4`, `stride8` ... of backbone and neck, of every head
Metadata     as classifiers have it, but for `input_size`, null where height and width are free (a classifier's is the
             size that it is evaluated at), and the preparation of images: `resize`, steps one after the other,
             {"scale": [a, b], "keep_ratio": true} (into a x b or b x a), {"scale": [width, height],
             "keep_ratio": false} and {"multiple": n} (stretched up to multiples); `channels`, `mean` and `std`; and
             `kind`, `palette`, `align_corners`, `threshold` (of a segmenter with one class), `mask_threshold`
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vertebra import __version__
from vertebra.backbones._errors import UserError
from vertebra.tools._dense import Dense, step_name
from vertebra.tools._export.checks import CHECKS, Report, check_sizes, compare, run_pytorch
from vertebra.tools._export.deform_conv import exportable_deform_convs
from vertebra.tools._export.dense_refusals import refusal
from vertebra.tools._export.detector_check import DetectorReport, compare_boxes
from vertebra.tools._export.detector_graph import DetectorGraph, translations
from vertebra.tools._export.files import check_target, new_file
from vertebra.tools._export.model import to_properties
from vertebra.tools._export.onnx_graph import FREE_SIZE, answers, check_graph, check_opset, describe, save, trace
from vertebra.tools._export.segmenter_graph import MapsGraph, SegmenterGraph

_TRACED = (128, 160)
"""Height and width to trace with where they are free: small, so that tracing is quick, and unlike each other."""


def export_dense(
    dense: Dense,
    out: str | Path,
    features: bool = False,
    static: tuple[int, int] | None = None,
    opset: int | None = None,
) -> Report | DetectorReport:
    """Write a detector or segmenter, or the maps of its backbone and neck, as an ONNX file that agrees with it.

    Args:
        dense: the model, with its classes and what prepares an image for it.
        out: the file to write; an ONNX file that stands there is replaced, and only by one that passed every check.
        features: export the maps instead of the whole.
        static: height and width to fix; None leaves them free.
        opset: version of the standard operators, 18 or newer; None takes PyTorch's default.

    Raises:
        UserError: the file cannot be written, the model or the options cannot be exported, or the results differ.
    """
    out = Path(out)
    check_opset(opset)
    check_target(out)
    kind = type(dense.model).__name__
    boxes = not (features or dense.segments)
    graph, names = _graph(dense, features)
    entries = metadata(dense, features, (3, *static) if static else None)
    fixed = {0: boxes, 2: static is not None, 3: static is not None}
    free = {axis: name for axis, name in FREE_SIZE.items() if not fixed[axis]}
    with new_file(out) as temporary:
        sizes = CHECKS if boxes else check_sizes(*_TRACED)
        shapes = [(1 if boxes else batch, 3, *(static or size)) for batch, *size in sizes]
        expected = [] if boxes else [run_pytorch(kind, graph, shape, static is not None) for shape in shapes]
        began = time.perf_counter()
        image = torch.zeros(1 if boxes else 2, 3, *(static or _TRACED))
        options = {"custom_translation_table": translations()} if boxes else {}
        with exportable_deform_convs():
            program = trace(kind, graph, image, names, free, opset, **options)
        describe(program, to_properties(entries))
        data_file = save(program, temporary)
        seconds = time.perf_counter() - began
        nodes, found_opset = check_graph(temporary, opset)
        checks: Any = (
            compare_boxes(temporary, graph, shapes, fixed=static is not None)
            if boxes
            else compare(graph, answers(temporary), expected, fixed=static is not None)
        )
        size = sum(path.stat().st_size for path in temporary.parent.iterdir())
    return (DetectorReport if boxes else Report)(
        file=out,
        data_file=out.with_name(data_file.name) if data_file else None,
        details=f"opset {found_opset}, {nodes} nodes",
        megabytes=size / 1e6,
        seconds=seconds,
        outputs=tuple(names),
        free_size=static is None,
        checks=checks,
    )


def _graph(dense: Dense, features: bool) -> tuple[nn.Module, list[str]]:
    """The module to trace, in float32 and eval mode, and the names of its outputs."""
    model = dense.model.float().eval()
    if features:
        return MapsGraph(model).eval(), _map_names(model)
    reason = refusal(dense)
    if reason:
        raise UserError(f"{type(model).__name__} {reason}; --features exports its backbone and neck")
    if dense.segments:
        return SegmenterGraph(model).eval(), ["logits"]
    masks = getattr(model, "roi_head", None) is not None and model.roi_head.with_mask
    return DetectorGraph(model).eval(), ["boxes", "scores", "labels", *(["masks"] if masks else [])]


def _map_names(model: Any) -> list[str]:
    """A name for each map, after its stride; counted on an image of 256 x 256."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        maps = MapsGraph(model).eval()(torch.zeros(1, 3, 256, 256, device=device))
    strides = [round(256 / level.shape[-1]) for level in maps]
    return [f"stride{s}" if strides.count(s) == 1 else f"map{i}_stride{s}" for i, s in enumerate(strides)]


def metadata(dense: Dense, features: bool, input_size: tuple[int, ...] | None) -> dict[str, Any]:
    """What a reader needs beside the graph; `input_size` is (C, H, W), None where sizes are free."""
    model = dense.model
    entries = {
        "model_name": getattr(model.backbone, "model_name", type(model.backbone).__name__),
        "kind": type(model).__name__,
        "task": "features" if features else "segmentation" if dense.segments else "detection",
        "labels": [] if features else dense.labels,
        "palette": [] if features else dense.palette,
        "input_size": input_size,
        "resize": [] if features else resizing(dense.steps),
        **_normalisation(model.data_preprocessor),
        "vertebra": __version__,
    }
    if dense.segments and not features:
        entries["align_corners"] = bool(model.align_corners)
        entries["threshold"] = getattr(model.decode_head, "threshold", None) if model.out_channels == 1 else None
    elif not features and hasattr(model, "roi_head") and model.roi_head.with_mask:
        entries["mask_threshold"] = model.roi_head.test_cfg.mask_thr_binary
    return entries


def resizing(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps that change an image's size, as the metadata has them.

    Raises:
        UserError: a step does something else, which no reader of the file could know of.
    """
    found = []
    for step in steps:
        name, options = step_name(step), {key: value for key, value in step.items() if key != "type"}
        scale = options.pop("scale", None)
        scale = [scale, scale] if isinstance(scale, int) else scale
        if name == "Resize" and scale and options.keys() <= {"keep_ratio"}:
            found.append({"scale": list(scale), "keep_ratio": bool(options.get("keep_ratio", False))})
        elif name == "ResizeToMultiple" and options.keys() <= {"size_divisor"}:
            found.append({"multiple": options.get("size_divisor", 32)})
        elif not name.startswith(("LoadImage", "Pack")):
            raise UserError(
                f"the test data's pipeline has {dict(step)}; what an exported file can tell of is Resize with scale "
                "and keep_ratio, and ResizeToMultiple with size_divisor"
            )
    return found


def _normalisation(preprocessor: Any) -> dict[str, Any]:
    """Order of the channels; their mean and standard deviation where pixels run from 0 to 1, in float32's digits."""
    mean, std = [0.0] * 3, [1.0] * 3
    if preprocessor._enable_normalize:
        mean, std = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
    return {
        "channels": "RGB" if preprocessor._channel_conversion else "BGR",
        "mean": [round(value / 255, 7) for value in mean],
        "std": [round(value / 255, 7) for value in std],
    }
