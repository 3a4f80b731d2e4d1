"""Multiply-adds of a model as papers count them: what convolutions and matrix products cost for one image.

One multiply-add is two of the floating-point operations that PyTorch's counter adds up; norms, activations, biases and
softmax are left out. Three choices make it a count of the architecture and not of one implementation:

- it runs on the meta device, where no arithmetic is done and attention takes its plain form, so that every product is
  seen: the counter has no formula for the CPU's fused attention and would add nothing for it;
- operators take the form that defines them (`VERTEBRA_KERNELS=reference`), not the one that is fastest here;
- the model is fresh and sees one image. Position biases that a small network computes for the size at hand count as
  one run of that network on every distance, as they do in the papers, however the table is made and kept.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision  # noqa: F401  brings the deformable convolution
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vertebra.backbones._position_bias import PositionBias
from vertebra.kernels.dispatch import VARIABLE


def count_multiply_adds(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> int:
    """Multiply-adds of one image in eval mode.

    Args:
        model: freshly built, on any device; it is copied and stays as it is.
        size: image size, a side or (height, width).
        in_chans: channels of the image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    on_meta = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, in_chans, height, width, device="meta", dtype=next(on_meta.parameters()).dtype)
    formulas = {torch.ops.torchvision.deform_conv2d: _deformable_convolution}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with torch.no_grad(), _reference_operators(), _first_layers_of_biases(on_meta) as first_layers, counter:
        on_meta(image)
    return counter.get_total_flops() // 2 + sum(first_layers)


def count_gflops(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> float:
    """The same in 1e9 multiply-adds, which papers call GFLOPs."""
    return count_multiply_adds(model, size, in_chans) / 1e9


def _deformable_convolution(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """As a convolution of the same weight; where each tap reads is interpolation and not counted."""
    taps = weight[1] * weight[2] * weight[3]
    return 2 * out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3] * taps


@contextmanager
def _first_layers_of_biases(model: nn.Module) -> Iterator[list[int]]:
    """Multiply-adds of the first layers of networks for position biases, which `PositionBias` has by sums instead."""
    found: list[int] = []

    def add(module: PositionBias, _: Any, result: Any) -> None:
        distances = result[0][0].numel()  # of the table of one head
        found.append(distances * module.fc1.weight.numel())

    hooks = [part.register_forward_hook(add) for part in model.modules() if isinstance(part, PositionBias)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _reference_operators() -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
