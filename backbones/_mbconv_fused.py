"""MaxViT's convolutions: the block that widens, and the layers that halve a map, odd ones too.

timm halves maps with even sides only, or with a branch on their size, which compilers cannot follow.
"""

from typing import Any

import torch
from timm.layers import Conv2dSame, to_2tuple
from timm.layers.pool2d_same import AvgPool2dSame
from timm.models import maxxvit, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional

from ..kernels._layout import is_eager, missing
from ._fused import fused_form_of
from ._layers import is_plain, plain_layer

__all__ = ["FusedMbConvBlock"]

_WIDE = 2**22  # numbers in a map of hidden channels, from where on it is made _CHANNELS at a time
_CHANNELS = 64


def _missing(x: Tensor) -> tuple[int, int]:
    """The rows and columns that a map (B, C, H, W) lacks to be even."""
    return missing(x.shape[2], 2), missing(x.shape[3], 2)


@register_notrace_module
@plain_layer
class FusedConv2dSame(nn.Conv2d):
    """A convolution that halves the map with TensorFlow's padding, without a branch on its size: (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(_surrounded(x), self.weight, self.bias)


def _surrounded(x: Tensor) -> Tensor:
    """A map with the zeros that TensorFlow's padding gives a convolution that halves it."""
    below, right = _missing(x)
    return functional.pad(x, [right, 1, below, 1])


class _HalvingPool(nn.AvgPool2d):
    """The mean of 2 x 2 pixels, of a map with an odd side too: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""

    def forward(self, x: Tensor) -> Tensor:
        below, right = _missing(x)
        whole = False
        if not torch.jit.is_scripting():
            whole = is_eager(x) and not (below or right)
        if not whole:
            x = functional.pad(x, [0, right, 0, below], mode=self.beyond)
        return functional.avg_pool2d(x, self.kernel_size, self.stride)


@register_notrace_module
class FusedAvgPool2dSame(_HalvingPool):
    """Beyond the edge there are zeros, which timm counts in the mean."""

    __constants__ = ("beyond", "kernel_size", "stride")
    beyond = "constant"


@register_notrace_module
class FusedAvgPool2d(_HalvingPool):
    """Beyond the edge there is nothing, where timm's pool would drop the edge: the mean is of the pixels there are."""

    __constants__ = ("beyond", "kernel_size", "stride")
    beyond = "replicate"


_HALVING = {Conv2dSame: FusedConv2dSame, AvgPool2dSame: FusedAvgPool2dSame, nn.AvgPool2d: FusedAvgPool2d}


def _halve(layer: nn.Module) -> None:
    """Give a layer that halves the map, and that timm has for even maps only or with branches, its new class."""
    kernel = 3 if isinstance(layer, nn.Conv2d) else 2
    sizes = to_2tuple(layer.kernel_size), to_2tuple(layer.stride), to_2tuple(layer.padding)
    if type(layer) in _HALVING and sizes == ((kernel, kernel), (2, 2), (0, 0)):
        layer.__class__ = _HALVING[type(layer)]


def _prepare_stem(stem: maxxvit.Stem) -> bool:
    _halve(stem.conv1)
    return False


def _prepare_mbconv(block: maxxvit.MbConvBlock) -> bool:
    if to_2tuple(block.conv2_kxk.stride) == (2, 2):
        _halve(block.conv2_kxk)
        _halve(block.shortcut.pool)
    return True


fused_form_of(maxxvit.Stem, _prepare_stem)(maxxvit.Stem)


def _part(column: Tensor | None, at: slice) -> Tensor | None:
    return None if column is None else column[at]


@register_notrace_module
@fused_form_of(maxxvit.MbConvBlock, _prepare_mbconv)
class FusedMbConvBlock(maxxvit.MbConvBlock):
    """Widen, convolve each channel, squeeze: (B, C, H, W) -> (B, C', H', W').

    In inference on a CPU the widest maps are made a few channels at a time: a large image would need most of its memory
    for them.
    """

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.down(self.pre_norm(x))
        if torch.jit.is_scripting():
            x = self.conv2_kxk(self.norm1(self.conv1_1x1(x)))
        elif self._can_cut(x):
            x = self._in_pieces(x)
        else:
            x = self.conv2_kxk(self.norm1(self.conv1_1x1(x)))
        if self.se_early is not None:
            x = self.se_early(x)
        x = self.norm2(x)
        if self.se is not None:
            x = self.se(x)
        return self.drop_path(self.conv3_1x1(x)) + shortcut

    @torch.jit.unused
    def _can_cut(self, x: Tensor) -> bool:
        narrow, deep = self.conv1_1x1, self.conv2_kxk
        return (
            is_eager(x)
            and x.device.type == "cpu"
            and x[:, 0].numel() * len(narrow.weight) > _WIDE
            and not (torch.is_grad_enabled() or self.norm1.training)
            and is_plain(narrow, self.norm1, deep)
            and deep.groups == len(narrow.weight)
        )

    @torch.jit.unused
    def _in_pieces(self, x: Tensor) -> Tensor:
        narrow: nn.Conv2d = self.conv1_1x1
        norm: Any = self.norm1
        deep: nn.Conv2d = self.conv2_kxk
        out = []
        for start in range(0, deep.groups, _CHANNELS):
            at = slice(start, start + _CHANNELS)
            hidden = functional.conv2d(x, narrow.weight[at], _part(narrow.bias, at), narrow.stride)
            hidden = functional.batch_norm(
                hidden, norm.running_mean[at], norm.running_var[at], norm.weight[at], norm.bias[at], eps=norm.eps
            )
            hidden = norm.act(hidden)
            if isinstance(deep, FusedConv2dSame):
                hidden = _surrounded(hidden)
            weight, bias = deep.weight[at], _part(deep.bias, at)
            out.append(functional.conv2d(hidden, weight, bias, deep.stride, deep.padding, groups=len(weight)))
        return torch.cat(out, 1)
