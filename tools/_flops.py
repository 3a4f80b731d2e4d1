"""Multiply-adds of a model as papers count them: what convolutions and matrix products cost, for one image.

One multiply-add is two of the floating-point operations that PyTorch's counter adds up; norms, activations, biases and
softmax are left out. The count runs on the meta device, where no arithmetic is done and attention takes its plain form,
so that every product is seen: the counter has no formula for the CPU's fused attention and would add nothing for it.
"""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_multiply_adds(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> int:
    """Multiply-adds of one forward pass in eval mode.

    Args:
        model: on any device; it is copied and stays as it is.
        size: image size, a side or (height, width).
        in_chans: channels of the image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    on_meta = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, in_chans, height, width, device="meta", dtype=next(on_meta.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_meta(image)
    return counter.get_total_flops() // 2


def count_gflops(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> float:
    """The same in 1e9 multiply-adds, which papers call GFLOPs."""
    return count_multiply_adds(model, size, in_chans) / 1e9
