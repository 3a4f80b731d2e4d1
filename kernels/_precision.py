"""Which numbers want more bits than the weights have."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""Asked here, since older versions of PyTorch cannot compile the question."""


def wide(x: Tensor) -> Tensor:
    """`x` in at least 32 bits, for norms, softmax and long sums."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which autocast does not round what is computed from `x`. Scripts cannot switch it off."""
    return torch.autocast(x.device.type, enabled=False) if in_autocast(x) else nullcontext()


def in_autocast(x: Tensor) -> bool:
    """Whether autocast is on where `x` lies."""
    return x.device.type in _AUTOCAST and torch.is_autocast_enabled(x.device.type)
