"""Small modules that several families use."""

from typing import Any

from timm.models import register_notrace_module
from torch import Tensor, nn

from ..kernels.depthwise_conv import depthwise_conv


@register_notrace_module
class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution of the map's own size: (B, C, H, W) -> (B, C, H, W), in the layout it gets.

    Args:
        dim: channels.
        kernel: side of the square kernel, odd.
        dilation: the step from one tap of the kernel to the next.
        activation: "gelu" or None, follows the convolution.
    """

    def __init__(
        self, dim: int, kernel: int, dilation: int = 1, bias: bool = True, activation: str | None = None, **dd: Any
    ) -> None:
        padding = kernel // 2 * dilation
        super().__init__(dim, dim, kernel, padding=padding, dilation=dilation, groups=dim, bias=bias, **dd)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias, self.dilation[0], self.activation)


@register_notrace_module
class TokenConv(nn.Conv2d):
    """A depthwise convolution of the map's own size on tokens: (B, H, W, C) -> (B, H, W, C), plus `residual` if given.

    All changes of layout are views: a convolution of a channels-last map gives a channels-last map.
    """

    def __init__(self, dim: int, kernel: int, bias: bool = True, **dd: Any) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias, **dd)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        added = None if residual is None else residual.permute(0, 3, 1, 2)
        out = depthwise_conv(x.permute(0, 3, 1, 2), self.weight, self.bias, residual=added)
        return out.permute(0, 2, 3, 1)
