"""What tests read out of exported files, without any code of the tools."""

from pathlib import Path

import onnx
import onnxruntime
import torch


def run(path: Path, images: torch.Tensor) -> list[torch.Tensor]:
    """ONNX Runtime's answers to images (B, C, H, W)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {"image": images.numpy()})]


def free_axes(path: Path) -> list[int]:
    """The axes of the images that have a name instead of a size."""
    (image,) = onnx.load(path, load_external_data=False).graph.input
    return [axis for axis, size in enumerate(image.type.tensor_type.shape.dim) if not size.HasField("dim_value")]


def constant_bytes(path: Path) -> int:
    """Every constant of the graph: initialisers, and tensors inside nodes."""
    graph = onnx.load(path).graph
    inside = (attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t"))
    return sum(tensor.ByteSize() for tensor in (*graph.initializer, *inside))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-4 of the standard deviation of what is expected."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.std()
