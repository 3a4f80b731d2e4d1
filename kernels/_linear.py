"""A linear layer, and the GELU behind it, by oneDNN: faster than what PyTorch calls, and the GELU costs no pass.

Inference in float32 on a CPU only: PyTorch's operator for it, which its own compiler calls, knows no gradient and no
transformation. Everything else takes the plain way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from ._layout import is_eager

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # no build without oneDNN has it


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weightᵀ + bias, and its exact GELU if asked for: (..., C) -> (..., D).

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,) or None.
        gelu: whether the activation follows.
    """
    if torch.jit.is_scripting():
        return _plain(x, weight, bias, gelu)
    if fuses(x, weight, bias):
        return _onednn(x, weight, bias, "gelu", [], "none") if gelu else _onednn(x, weight, bias, "none", [], "")
    return _plain(x, weight, bias, gelu)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    x = functional.linear(x, weight, bias)
    return functional.gelu(x) if gelu else x


def fuses(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN's operator can take them, with no gradient, transformation or observer to miss it."""
    return (
        _onednn is not None
        and is_eager(x)
        and type(x) is Tensor
        and type(weight) in (Tensor, Parameter)  # a subclass may hold quantized weights
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (
            torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (x, weight, bias))
        )
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and not torch._C._len_torch_dispatch_stack()
    )
