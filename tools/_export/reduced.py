"""A classifier, or its feature maps, as an ONNX file of smaller numbers, with what they cost in accuracy."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import Classifier, require_pictures
from vertebra.tools._export.accuracy import (
    Accuracy,
    Sample,
    batches,
    check_numbers,
    find_samples,
    measure,
    share_out,
    spread,
)
from vertebra.tools._export.checks import CHECKS, noise
from vertebra.tools._export.classifier import OnnxReport, export
from vertebra.tools._export.files import HIDDEN, check_target, new_file
from vertebra.tools._export.model import image_size
from vertebra.tools._export.onnx_graph import check_graph
from vertebra.tools._export.onnx_reduce import HALF_LIMIT, largest_value, to_half, to_int8

_NOT_COMPARED = "accuracy not compared: --data DIR names a folder of images for that"


def export_reduced(
    classifier: Classifier,
    out: str | Path,
    calibrate: Path | None = None,
    data: Path | None = None,
    features: bool = False,
    static: tuple[int, int] | None = None,
    opset: int | None = None,
) -> tuple[OnnxReport, Accuracy | None]:
    """Write a classifier, or its feature maps, in float16, or with `calibrate` in 8-bit integers.

    The float32 file is exported and compared with PyTorch as always; the reduced one is made from it and compared with
    it on images. Inputs, outputs and metadata are the same, but for the metadata's additional `precision`.

    Args:
        classifier: the model, with its labels and image preparation.
        out: the file to write.
        calibrate: a folder of images that the scales of 8-bit integers are taken from; None for float16.
        data: a folder of images to compare on, one folder a class for top-1; by default every fourth of `calibrate`.
        features: as for `export`; so are `static` and `opset`.

    Returns:
        The report, of the reduced file where the two differ, and the accuracy; None for float16 without `data`.

    Raises:
        UserError: as `export`; a folder without images; answers out of the range of the smaller numbers.
    """
    out, precision = Path(out), "int8" if calibrate else "float16"
    check_target(out)
    size = image_size(classifier, static)
    calibration, samples = _find_images(classifier, calibrate, data)
    tried = [images for images, _ in batches(calibration if calibrate else spread(samples), classifier, size)]
    if calibrate and not tried:
        raise UserError(f"none of the {len(calibration)} images of --calibrate {calibrate} can be read")
    with new_file(out) as temporary, tempfile.TemporaryDirectory(prefix=HIDDEN, dir=out.parent) as folder:
        full = Path(folder, "float32.onnx")
        report = export(classifier, full, features, static, opset)
        began = time.perf_counter()
        if calibrate:
            data_file = to_int8(full, temporary, tried)
            how = f"int8, scales from {sum(map(len, tried))} images of {calibrate}"
        else:
            largest = largest_value(full, [noise((2, *size)), *tried])
            data_file = to_half(full, temporary)
            how = f"float16, numbers up to {largest:.3g} of {HALF_LIMIT}"
        seconds = report.seconds + time.perf_counter() - began
        nodes, found = check_graph(temporary)
        check_numbers(temporary, (CHECKS[0][0], size[0], *(static or CHECKS[0][1:])))
        accuracy = measure(full, temporary, batches(samples, classifier, size), features) if samples else None
        megabytes = sum(path.stat().st_size for path in temporary.parent.iterdir()) / 1e6
    where = data or f"every fourth image of {calibrate}, of which none gave a scale"
    cost = f"{precision} against float32 on {where}: {accuracy}"
    changes = dict(file=out, data_file=out.with_name(data_file.name) if data_file else None, megabytes=megabytes)
    return replace(
        report,
        **changes,
        runtime="The float32 file that it was made from, in ONNX Runtime,",
        details=f"{precision}, opset {found}, {nodes} nodes",
        seconds=seconds,
        nodes=nodes,
        opset=found,
        notes=(f"{how}: {megabytes:.1f} MB instead of {report.megabytes:.1f}", cost if accuracy else _NOT_COMPARED),
    ), accuracy


def _find_images(
    classifier: Classifier, calibrate: Path | None, data: Path | None
) -> tuple[list[Sample], list[Sample]]:
    """Images to calibrate on, and others to measure on; UserError where a folder has none or the model takes no RGB."""
    if calibrate or data:
        require_pictures(classifier)
    seen = find_samples(calibrate, "train", classifier, "--calibrate") if calibrate else []
    if data:
        return spread(seen), find_samples(data, "val", classifier, "--data")
    if not calibrate:
        return [], []
    seen, held_out = share_out(seen)
    return spread(seen), held_out
