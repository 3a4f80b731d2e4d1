"""Multiply-adds of a model as papers count them: what convolutions and matrix products cost for one image.

Norms, activations, biases, pooling, interpolation and softmax are left out. Four choices make it a count of the
architecture and not of one implementation:

- it runs on the meta device, where no arithmetic is done and attention takes its plain form, so that every product is
  seen: PyTorch has no formula for the CPU's fused attention and would add nothing for it;
- operators take the form that defines them (`VERTEBRA_KERNELS=reference`), not the one that is fastest here;
- pooling and interpolation stay out where they are written as products: those of the image with a matrix in which
  there are neither weights nor anything of the image;
- position biases that a small network computes for the size at hand count as one run of that network on every
  distance, as they do in the papers, however the table is made and kept.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision  # noqa: F401  brings the deformable convolution
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from vertebra.backbones._position_bias import PositionBias
from vertebra.kernels.dispatch import VARIABLE

_CONSTANT, _OF_WEIGHTS, _OF_IMAGE = range(3)  # what a tensor was made from, the last of these that took part


def count_multiply_adds(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> int:
    """Multiply-adds of one image in eval mode.

    Args:
        model: on any device; it is copied and stays as it is.
        size: image size, a side or (height, width).
        in_chans: channels of the image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    on_meta = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, in_chans, height, width, device="meta", dtype=next(on_meta.parameters()).dtype)
    counter = _Products([*on_meta.parameters(), *on_meta.buffers()], image)
    with torch.no_grad(), _reference_operators(), _first_layers_of_biases(on_meta) as first_layers, counter:
        on_meta(image)
    return counter.operations // 2 + sum(first_layers)


def count_gflops(model: nn.Module, size: int | tuple[int, int], in_chans: int = 3) -> float:
    """The same in 1e9 multiply-adds, which papers call GFLOPs."""
    return count_multiply_adds(model, size, in_chans) / 1e9


def _deformable_convolution(x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """As a convolution of the same weight; where each tap reads is interpolation."""
    return 2 * out_val.numel() * weight[0].numel()


class _Products(TorchDispatchMode):
    """Adds up the floating-point operations, two a multiply-add, of the products that run inside.

    It knows by their memory what tensors were made from. Every tensor is kept until the end, so that no memory is seen
    twice; on the meta device they take none.
    """

    def __init__(self, weights: Sequence[Tensor], image: Tensor) -> None:
        super().__init__()
        self.operations = 0
        self._kept: list[Tensor] = []
        self._made_from: dict[int, int] = {}
        self._note(weights, _OF_WEIGHTS)
        self._note([image], _OF_IMAGE)

    def _note(self, tensors: Sequence[Tensor], origin: int) -> None:
        for tensor in tensors:
            self._kept.append(tensor)
            self._made_from[tensor.untyped_storage()._cdata] = origin

    def _origin(self, tensor: Tensor) -> int:
        return self._made_from.get(tensor.untyped_storage()._cdata, _CONSTANT)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        operations = _FORMULAS.get(func._overloadpacket)
        if operations is not None and {self._origin(factor) for factor in _factors(args)} != {_CONSTANT, _OF_IMAGE}:
            self.operations += operations(*args, **kwargs, out_val=out)
        origin = max(map(self._origin, given), default=_CONSTANT)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._note([tensor for tensor in made if self._origin(tensor) < origin], origin)
        return out


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.torchvision.deform_conv2d: _deformable_convolution,
}


def _factors(args: tuple[Any, ...]) -> list[Tensor]:
    """The two factors of a product: in addmm and baddbmm what they are added to comes first."""
    tensors = [arg for arg in args[:3] if isinstance(arg, Tensor)]
    matrices = len(args) > 2 and isinstance(args[2], Tensor) and args[1].dim() in (2, 3) and args[2].dim() in (2, 3)
    return tensors[1:3] if matrices else tensors[:2]


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
