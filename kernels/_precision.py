"""Which numbers want more bits than the weights have."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in at least 32 bits, for norms, softmax and long sums."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x
