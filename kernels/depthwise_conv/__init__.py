"""A depthwise convolution of the map's own size, with what usually follows it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _triton, dispatch
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
        backend: None, "reference", "eager" or "triton"; see `dispatch`.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: an activation or a backend that does not exist; names those that do.
        BackendError: the backend that was asked for cannot run; says why.
    """
    if torch.jit.is_scripting():
        return eager.depthwise_conv(x, weight, bias, dilation, activation, gate, residual)
    _check_activation(activation)
    tensors = (x, weight, bias, gate, residual)
    unfit = partial(_unfit, x, weight, bias, dilation, gate, residual)
    shape = partial(_shape, x, weight, dilation, activation, gate, residual)
    run = _implementation(dispatch.choose("depthwise_conv", backend, tensors, unfit, shape))
    return run(x, weight, bias, dilation, activation, gate, residual)


def _implementation(chosen: str) -> Callable[..., Tensor]:
    if chosen == "triton":
        from . import triton

        return triton.depthwise_conv
    return reference.depthwise_conv if chosen == "reference" else eager.depthwise_conv


def _unfit(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, gate: Tensor | None, residual: Tensor | None
) -> str | None:
    if x.dim() != 4 or weight.dim() != 4:
        return f"x has {x.dim()} dimensions and weight {weight.dim()}; the kernel takes 4"
    if tuple(weight.shape[:2]) != (x.shape[1], 1) or weight.shape[2] != weight.shape[3]:
        return f"weight is {tuple(weight.shape)} for {x.shape[1]} channels; the kernel takes (C, 1, k, k)"
    if weight.shape[3] not in (3, 5, 7):
        return f"weight is {weight.shape[3]} wide; the kernel takes 3, 5 and 7"
    if dilation < 1:
        return f"dilation is {dilation}; the kernel takes 1 and more"
    for name, other in (("gate", gate), ("residual", residual)):
        if other is not None and other.shape != x.shape:
            return f"{name} is {tuple(other.shape)} and x {tuple(x.shape)}; the kernel takes one shape"
    return _triton.misshapen(bias=(bias, (x.shape[1],)))


def _shape(
    x: Tensor, weight: Tensor, dilation: int, activation: str | None, gate: Tensor | None, residual: Tensor | None
) -> str:
    """The class of shapes that is measured together: kernel, what follows it, and memory format."""
    side = weight.shape[-1]
    return " ".join(
        [
            f"{side}x{side}",
            *([f"dilation {dilation}"] if dilation > 1 else []),
            *([activation] if activation is not None else []),
            *(["gate"] if gate is not None else []),
            *(["residual"] if residual is not None else []),
            "channels_last" if x.dim() == 4 and x.stride(1) < x.stride(3) else "contiguous",
        ]
    )


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "gelu"):
        raise ValueError(f"activation is {activation!r}; it takes None or 'gelu'")
