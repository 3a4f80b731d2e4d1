"""Deformable convolution, versions 1 and 2, as mmcv's compiled operators define it, from torchvision's operator.

Answers   mmcv's `deform_conv_*` and `modulated_deform_conv_*`; results go into the tensors passed in
Samples   outside the map are 0; up to one pixel outside, the border fades to 0
Offsets   (N, 2 x offset groups x kernel height x kernel width, h, w): y before x of every kernel position
Unlike    torchvision: a sample exactly one pixel outside has no gradient for its offset (with zero offsets and a
          padding of 1 that is the whole border), and an offset that is not a number counts as outside
Precision float16 and bfloat16 are computed in float32 and rounded once at the end; mmcv rounds every step
Cost      version 1's backward costs twice version 2's: mmcv asks for weights apart, torchvision gives all at once
"""

from typing import NamedTuple

import torch
import torchvision.ops  # noqa: F401  it registers torch.ops.torchvision
from torch import Tensor

from ...backbones._errors import UserError

_FAR = 1e8  # pixels; outside of every map


class _Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution of `input` (N, C, H, W) to `output` (N, D, h, w); see the head for `offset`.

    `columns`, `ones` and `im2col_step` are mmcv's buffers and have no use here.
    """
    if input.shape[2] < kH or input.shape[3] < kW:
        raise UserError(
            f"Deformable convolution got a map of {input.shape[2]} x {input.shape[3]} pixels, "
            f"smaller than its kernel of {kH} x {kW}"
        )
    geometry = _Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add to `gradInput` and write to `gradOffset` what `gradOutput` (N, D, h, w) asks of them."""
    geometry = _Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    grads = _backward(gradOutput, input, weight, offset, None, geometry)
    gradInput.add_(grads.input)
    gradOffset.copy_(grads.offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient of the weights (D, C / groups, kH, kW) to `gradWeight`."""
    geometry = _Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    # The gradient of the weights does not depend on their values.
    grads = _backward(gradOutput, input, torch.zeros_like(gradWeight), offset, None, geometry)
    gradWeight.add_(grads.weight * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Version 2: every sample is weighed by `mask` (N, offset groups x kernel height x kernel width, h, w)."""
    geometry = _Geometry((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add to the gradients of input, weights and bias, and write those of offsets and masks, as mmcv does."""
    geometry = _Geometry((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    grads = _backward(grad_output, input, weight, offset, mask, geometry)
    grad_input.add_(grads.input)
    grad_weight.add_(grads.weight)
    grad_offset.copy_(grads.offset)
    grad_mask.copy_(grads.mask)
    if with_bias:
        grad_bias.add_(grads.bias)


class _Grads(NamedTuple):
    """In the order in which torchvision gives them."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: _Geometry
) -> Tensor:
    _check(input, weight, offset, mask, geometry)
    return torch.ops.torchvision.deform_conv2d(*_arguments(input, weight, offset, mask, bias, geometry))


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, geometry: _Geometry
) -> _Grads:
    arguments = _arguments(input, weight, offset, mask, None, geometry)
    grads = _Grads(*torch.ops.torchvision._deform_conv2d_backward(_wide(grad), *arguments))
    outside = _outside(arguments[2], input, weight, geometry)
    return grads._replace(offset=grads.offset.masked_fill(outside, 0))


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: _Geometry
) -> tuple:
    """What torchvision's operators take, in their order, in float32 or float64."""
    x, filters = _wide(input), _wide(weight)
    return (
        x,
        filters,
        # On a CPU, torchvision reads foreign memory where an offset is NaN.
        _wide(offset).nan_to_num(nan=_FAR, posinf=_FAR, neginf=-_FAR),
        x.new_zeros(len(x), 1) if mask is None else _wide(mask),
        x.new_zeros(len(filters)) if bias is None else _wide(bias),
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
        geometry.groups,
        geometry.offset_groups,
        mask is not None,
    )


def _outside(offset: Tensor, input: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Which offsets (N, 2 G K, h, w) belong to samples that mmcv leaves out: one pixel outside the map or more."""
    kernel, rows_and_columns = weight.shape[2:], offset.shape[2:]
    pairs = offset.unflatten(1, (geometry.offset_groups, *kernel, 2))  # (N, G, kH, kW, 2, h, w)
    outside = torch.zeros_like(pairs[:, :, :, :, :1], dtype=torch.bool)
    for axis, limit in enumerate(input.shape[2:]):
        taps = torch.arange(kernel[axis], device=offset.device) * geometry.dilation[axis]
        start = torch.arange(rows_and_columns[axis], device=offset.device) * geometry.stride[axis]
        grid = taps[:, None] + start - geometry.padding[axis]  # (kernel, places) along this axis
        # (kH, 1, 1, h, 1) or (kW, 1, 1, w), against (N, G, kH, kW, 1, h, w)
        grid = grid[:, None, None, :, None] if axis == 0 else grid[:, None, None]
        position = grid + pairs[:, :, :, :, axis : axis + 1]
        outside |= (position <= -1) | (position >= limit)
    return outside.expand_as(pairs).flatten(1, 4)


def _check(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, geometry: _Geometry) -> None:
    channels, taps = input.shape[1], weight.shape[2] * weight.shape[3]
    if channels != weight.shape[1] * geometry.groups or channels % geometry.offset_groups:
        raise UserError(
            f"Deformable convolution got {channels} channels, but its weights are for "
            f"{weight.shape[1] * geometry.groups} in {geometry.offset_groups} offset groups"
        )
    places = [
        (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for side, pad, dilation, kernel, stride in zip(
            input.shape[2:], geometry.padding, geometry.dilation, weight.shape[2:], geometry.stride, strict=True
        )
    ]
    for name, given, each in (("offsets", offset, 2), ("masks", mask, 1)):
        expected = (len(input), each * geometry.offset_groups * taps, *places)
        if given is not None and given.shape != expected:
            raise UserError(f"Deformable convolution got {name} of shape {tuple(given.shape)}, not {expected}")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
