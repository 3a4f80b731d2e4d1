"""Small modules that several families use on maps with the channels last, (B, H, W, C)."""

from typing import Any

from torch import Tensor, nn


class TokenConv(nn.Conv2d):
    """A depthwise convolution of the map's own size on tokens: (B, H, W, C) -> (B, H, W, C).

    Both changes of layout are views: a convolution of a channels-last map gives a channels-last map.
    """

    def __init__(self, dim: int, kernel: int, bias: bool = True, **dd: Any) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)
