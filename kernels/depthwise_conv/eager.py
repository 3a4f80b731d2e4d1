"""`depthwise_conv` as fast as plain PyTorch gets: on a CPU, around what oneDNN's depthwise code is slow at.

That is kernels with gaps, and gradients of kernels that are more than 3 wide.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._layout import is_eager


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See `vertebra.kernels.depthwise_conv`."""
    out = _conv(x, weight, bias, dilation)
    if activation is not None:
        out = _gelu(out)
    if gate is not None:
        out = out * gate
    return out if residual is None else residual + out


def _gelu(x: Tensor) -> Tensor:
    """The activation of a fresh tensor: in its place where no gradient needs what was there."""
    if torch.jit.is_scripting():
        return functional.gelu(x)
    if is_eager(x) and not x.requires_grad:
        return torch.ops.aten.gelu_(x)
    return functional.gelu(x)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    if torch.jit.is_scripting():
        return _plain_conv(x, weight, bias, dilation)
    if _is_onednn(x):
        return _conv_by_grids(x, weight, bias, dilation) if dilation > 1 else _conv_without_gaps(x, weight, bias)
    return _plain_conv(x, weight, bias, dilation)


def _plain_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    padding = weight.shape[3] // 2 * dilation
    return functional.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


def _is_onednn(x: Tensor) -> bool:
    """Whether PyTorch hands convolutions of `x` to oneDNN one by one, as no compiler or export does."""
    return is_eager(x) and x.device.type == "cpu" and torch.backends.mkldnn.is_available()


def _conv_by_grids(x: Tensor, weight: Tensor, bias: Tensor | None, gap: int) -> Tensor:
    """Convolve the interleaved grids of the map, each without gaps: the same sums."""
    batch, dim, height, width = x.shape
    rows, columns = -(-height // gap), -(-width // gap)
    x = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 0, columns * gap - width, 0, rows * gap - height))
    x = x.reshape(batch, rows, gap, columns, gap, dim).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(batch * gap * gap, rows, columns, dim).permute(0, 3, 1, 2)  # grids as images
    x = _conv_without_gaps(x, weight, bias)
    x = x.permute(0, 2, 3, 1).reshape(batch, gap, gap, rows, columns, dim).permute(0, 3, 1, 4, 2, 5)
    x = x.reshape(batch, rows * gap, columns * gap, dim)[:, :height, :width]
    return x.permute(0, 3, 1, 2)


def _conv_without_gaps(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernel = weight.shape[3]
    if (
        kernel > 3
        and weight.requires_grad
        and torch.is_grad_enabled()
        and x.shape[3] >= kernel // 2  # narrower maps leave nothing of some strips
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    ):
        out: Any = _WithGradientInStrips.apply(x, weight, bias)
        return out
    return _plain_conv(x, weight, bias)


class _WithGradientInStrips(torch.autograd.Function):
    """A depthwise convolution whose weight gets its gradient 3 columns at a time: up to there, oneDNN is fast."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _plain_conv(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad, pad = grad_outputs[0], weight.shape[3] // 2
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x, _, _ = _conv_backward(grad, x, weight, (pad, pad), (True, False, False))
        return grad_x, *_parameters_backward(grad, x, weight, ctx.has_bias)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, tangents
        return _plain_conv(of_x, weight, None) + _plain_conv(x, of_weight, of_bias)


def _parameters_backward(grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias: of the kernel's columns in threes, the middle ones giving the bias too."""
    kernel, pad = weight.shape[3], weight.shape[3] // 2
    rows = pad if x.shape[2] < kernel else 0  # oneDNN is slow where one kernel hangs over two edges
    strips, grad_bias = [], None
    for first, end in pairwise(sorted({0, *range((pad - 1) % 3, kernel, 3), kernel})):
        left, right = pad - first, end - 1 - pad
        columns = left if left == right else 0
        edges = (left - columns, right - columns, rows, rows)
        shifted = functional.pad(x, edges) if any(edges) else x
        of = (False, True, has_bias and left == right)
        _, strip, bias = _conv_backward(grad, shifted, weight[..., first:end], (pad - rows, columns), of)
        strips.append(strip)
        grad_bias = bias if left == right else grad_bias
    return torch.cat(strips, 3), grad_bias


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], of: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; None for those that `of` does not ask for."""
    ones, dim = [1, 1], len(weight)
    return torch.ops.aten.convolution_backward(grad, x, weight, [dim], ones, padding, ones, False, [0, 0], dim, of)
