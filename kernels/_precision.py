"""Which numbers want more bits than the weights have."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in at least 32 bits, for norms, softmax and long sums."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which autocast does not round what is computed from `x`. Scripts cannot switch it off."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
