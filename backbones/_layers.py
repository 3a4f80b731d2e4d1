"""Small modules that several families use."""

from typing import Any

from timm.layers import DropPath
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


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and added to its input: (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels.
        attn, mlp: (B, H, W, C) -> (B, H, W, C).
        drop_path: how often training skips one of them for an image.
        eps: of both norms.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float, eps: float, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, **dd)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps, **dd)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def is_plain(*layers: nn.Module) -> bool:
    """Whether layers are PyTorch's own and unwatched, so that their weights may be used without calling them.

    An adapter, a quantised layer, a mask or a hook in their place must be called as a module.
    """
    return all(type(layer) in _PLAIN and not (layer._forward_hooks or layer._forward_pre_hooks) for layer in layers)


_PLAIN = (nn.Linear, nn.Conv2d, nn.GELU, DepthwiseConv, TokenConv)
