"""Smaller numbers in an ONNX file: half precision, or 8-bit integers with scales taken from images."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from vertebra.backbones._errors import UserError
from vertebra.tools._common import need
from vertebra.tools._export.files import bytes_of, data_file
from vertebra.tools._export.onnx_graph import ONE_FILE_LIMIT, check_packages
from vertebra.tools._export.quiet import quiet

HALF_LIMIT = 65504
_QUANTISED = ["Conv", "MatMul", "Gemm"]
"""What gains from 8 bits where one side is a weight; norms, softmax, sums and attention's own products lose most."""


def largest_value(path: Path, batches: Sequence[Tensor]) -> float:
    """The largest magnitude of any finite number inside a float32 file, and of its weights, on images (B, C, H, W).

    Raises:
        UserError: float16 does not reach so far. This is looked up in the float32 file, because on a CPU ONNX Runtime
            computes in float32 what it has no float16 kernels for, and nothing would overflow.
    """
    with quiet(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        from onnxruntime.quantization.calibrate import create_calibrator

        augmented, large = str(Path(folder, path.name)), bytes_of(path) > ONE_FILE_LIMIT
        calibrator = create_calibrator(path, augmented_model_path=augmented, use_external_data_format=large)
        calibrator.collect_data(_reader(batches))
        ends = [np.ravel(data.range_value) for data in calibrator.compute_data().values()]
    onnx = check_packages()
    weights = [
        onnx.numpy_helper.to_array(x)
        for x in onnx.load(path).graph.initializer
        if x.data_type == onnx.TensorProto.FLOAT
    ]
    ends = np.concatenate([*ends, *(np.ravel([x.min(), x.max()]) for x in weights if x.size)])
    largest = float(np.abs(ends[np.abs(ends) < np.finfo(np.float32).max]).max())  # infinity and that are masks
    if largest > HALF_LIMIT:
        raise UserError(
            f"--fp16: numbers inside the network reach {largest:.3g}, and float16 overflows above {HALF_LIMIT}: "
            "nothing was written"
        )
    return largest


def to_half(source: Path, target: Path) -> Path | None:
    """Write `source` with weights and arithmetic in float16; inputs and outputs stay float32.

    Returns:
        The file with the weights, where one file would be too large.
    """
    check_packages()
    ir = need("onnx_ir", extra="export")
    with quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(str(source), keep_io_types=True)
    sorted_model = ir.from_proto(model)
    sorted_model.graph.sort()  # the converter puts its casts at the end
    return _save(ir.to_proto(sorted_model), source, target, "float16")


def to_int8(source: Path, target: Path, batches: Sequence[Tensor]) -> Path | None:
    """Write `source` with 8-bit weights (a scale per channel) and activations in its products (QDQ, static scales).

    Args:
        source: the float32 file.
        target: where the other goes.
        batches: images (B, C, H, W) whose activations set the scales: the largest and the smallest value seen.

    Returns:
        The file with the weights, where one file would be too large.

    Raises:
        UserError: no product of the file has a weight.
    """
    onnx = check_packages()
    large, products = bytes_of(source) > ONE_FILE_LIMIT, _weighted(onnx.load(source, load_external_data=False))
    if not products:  # ONNX Runtime takes an empty list for all there are
        raise UserError(f"--int8: none of the network's {', '.join(_QUANTISED)} has a weight to be made smaller")
    with quiet(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        from onnxruntime.quantization import QuantFormat, quantize_static

        quantised = Path(folder, target.name)
        quantize_static(
            source,
            quantised,
            _reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            nodes_to_quantize=products,
            per_channel=True,
            use_external_data_format=large,
        )
        return _save(onnx.load(quantised), source, target, "int8")


def _weighted(model: Any) -> list[str]:
    """Names of the products whose second factor is a weight; of a MatMul, a matrix.

    ONNX Runtime's own option for that, MatMulConstBOnly, changes nothing in static QDQ files, and it refuses to run a
    MatMul by a constant of more dimensions that has a scale per channel.
    """
    sides = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in _QUANTISED and node.input[1] in sides]
    return [node.name for node in products if node.op_type != "MatMul" or sides[node.input[1]] == 2]


def _reader(batches: Sequence[Tensor]) -> Any:
    left = iter(batches)
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(left, None)
            return None if batch is None else {"image": batch.numpy()}

    return Reader()


def _save(model: Any, source: Path, target: Path, precision: str) -> Path | None:
    """Write a model with the metadata of `source`, and its precision; in two files where one would be too large."""
    onnx = check_packages()
    kept = {p.key: p.value for p in onnx.load(source, load_external_data=False).metadata_props}
    onnx.helper.set_model_props(model, kept | {"precision": f'"{precision}"'})
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > ONE_FILE_LIMIT
    data = data_file(target)
    onnx.save_model(model, target, save_as_external_data=large, location=data.name)
    return data if large else None
