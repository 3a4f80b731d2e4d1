"""A depthwise convolution of the map's own size, with what usually follows it."""

import torch
from torch import Tensor

from .. import dispatch
from . import eager, reference

__all__ = ["depthwise_conv"]


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """gate * activation(conv(x) + bias) + residual: every channel by itself, zeros around the map.

    Args:
        x: (B, C, H, W), contiguous or with the channels last, which on a CPU is the faster layout; the result has it
            too.
        weight: (C, 1, k, k), k odd.
        bias: (C,); None adds nothing.
        dilation: the step from one tap of the kernel to the next, in pixels.
        activation: "gelu", the exact one; None for none.
        gate: (B, C, H, W), multiplies what comes out of the activation; None for none.
        residual: (B, C, H, W), is added last; None for none.
        backend: None, "reference" or "eager"; see `dispatch`.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: an activation or a backend that does not exist; names those that do.
    """
    if torch.jit.is_scripting():
        return eager.depthwise_conv(x, weight, bias, dilation, activation, gate, residual)
    _check_activation(activation)
    run = reference.depthwise_conv if dispatch.is_reference(backend) else eager.depthwise_conv
    return run(x, weight, bias, dilation, activation, gate, residual)


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "gelu"):
        raise ValueError(f"activation is {activation!r}; it takes None or 'gelu'")
