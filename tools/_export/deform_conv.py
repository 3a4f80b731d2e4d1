"""Deformable convolutions of mmcv as torchvision's operator, which exports as ONNX's DeformConv."""

import contextlib
import importlib
from collections.abc import Iterator

from torch import Tensor
from torchvision.ops import deform_conv2d

Pair = int | tuple[int, int]


@contextlib.contextmanager
def exportable_deform_convs() -> Iterator[None]:
    """Inside, mmcv's layers call torchvision.

    mmcv's own functions write into a tensor whose sizes are plain numbers: an exporter takes them for fixed.
    """
    first, second = (importlib.import_module(f"mmcv.ops.{name}") for name in ("deform_conv", "modulated_deform_conv"))
    before = first.deform_conv2d, second.modulated_deform_conv2d
    first.deform_conv2d, second.modulated_deform_conv2d = _first, _second
    try:
        yield
    finally:
        first.deform_conv2d, second.modulated_deform_conv2d = before


def _first(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """mmcv's `deform_conv2d`: torchvision finds both numbers of groups in the shapes."""
    return deform_conv2d(input, offset, weight, None, stride, padding, dilation)


def _second(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """mmcv's `modulated_deform_conv2d`."""
    return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)
