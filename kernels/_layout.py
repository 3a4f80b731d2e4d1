"""Shapes: padding a map to a multiple of something, whether shapes are numbers at all, and what exporters need."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.torch_version import TorchVersion

_FOLDED = TorchVersion(torch.__version__) < "2.14"
"""Whether `torch.compile` takes `torch.compiler.is_exporting()` for true, a fault of older versions of PyTorch."""


def is_eager(x: Tensor) -> bool:
    """Whether `x` is an ordinary tensor, whose shape is numbers and whose memory may be looked at and written to.

    Not so in a compiler, an export, a trace, an fx graph, or under `torch.func`. Scripts cannot ask.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or isinstance(x, torch.fx.Proxy):
        return False
    return not is_transformed()


def is_exporting() -> bool:
    """Whether `torch.export`, or what builds on it, follows the code. Scripts may ask, too."""
    if torch.jit.is_scripting():
        return False
    if _FOLDED:
        return torch.compiler._is_exporting_flag or torch.onnx.is_in_onnx_export()
    return torch.compiler.is_exporting()


def is_compiled() -> bool:
    """Whether `torch.compile` follows the code, and no export: what it compares becomes a condition of the graph."""
    if torch.jit.is_scripting():
        return False
    return torch.compiler.is_compiling() and not is_exporting()


def in_order(x: Tensor) -> Tensor:
    """In an export, a copy of `x` in the order of its dimensions; elsewhere `x` itself.

    Norms, sums and the like look at the strides of another order. An exporter notes what they found as a condition on
    the sizes, one that it cannot prove for a range of them.
    """
    return x.clone(memory_format=torch.contiguous_format) if is_exporting() else x


def is_transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work: they follow PyTorch's plain operators only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def missing(side: int, multiple: int) -> int:
    """What a side lacks to be a multiple of a number: `-side % multiple`, in a form that compilers can simplify.

    To them a side is a formula. With this one the filled side is `(side + multiple - 1) // multiple * multiple`, which
    they divide by `multiple` at once; a remainder they carry through the whole network.
    """
    return (side + multiple - 1) // multiple * multiple - side


def divided(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """`x // by` and `x % by`, of integers. Exporters to ONNX have no remainder by a side that is free."""
    times = x // by
    return times, x - times * by


def fill_map(x: Tensor, multiple: int) -> Tensor:
    """Zeros below and on the right of a map (B, H, W, ...), up to sides that are multiples of a number."""
    return pad_map(x, 0, missing(x.shape[1], multiple), 0, missing(x.shape[2], multiple))


def pad_map(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Zeros around a map (B, H, W, ...): (B, top + H + bottom, left + W + right, ...).

    Where shapes are numbers and nothing is to be added, `x` itself comes back. Compilers and exports, whose shapes are
    symbols, always see the padding: a branch would fix the sizes that take it.
    """
    if torch.jit.is_scripting():
        if top == 0 and bottom == 0 and left == 0 and right == 0:
            return x
    elif is_eager(x) and not (top or bottom or left or right):
        return x
    edges = [left, right, top, bottom]
    return functional.pad(x, [0, 0] * (x.dim() - 3) + edges)
