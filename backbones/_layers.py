"""Small modules that several families use."""

from typing import Any, TypeVar

import timm.layers
import torch
from timm.layers import BatchNormAct2d, DropPath
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..kernels._linear import fuses, linear
from ..kernels.depthwise_conv import depthwise_conv
from ..kernels.window_attention import window_attention

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_TOKENS = 2048  # of an MLP at a time


@register_notrace_module
class Mlp(timm.layers.Mlp):
    """Two linear layers with a GELU between them: (..., C) -> (..., C).

    timm's, which in inference on a CPU runs some tokens at a time: what is between the layers then stays in the cache,
    and a large image needs no memory for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._whole(x)
        return self._in_pieces(x) if self._can_cut(x) else self._whole(x)

    def _whole(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.norm(x)))

    @torch.jit.unused
    def _can_cut(self, x: Tensor) -> bool:
        return (
            not self.training
            and isinstance(self.fc1, nn.Linear)
            and fuses(x, self.fc1.weight)
            and is_plain(self.fc1, self.act, self.norm, self.fc2)
            and type(self.act) is nn.GELU
            and self.act.approximate == "none"
            and type(self.norm) is nn.Identity
        )

    @torch.jit.unused
    def _in_pieces(self, x: Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        parts = x.flatten(0, -2).split(_TOKENS)
        out = [linear(linear(part, first.weight, first.bias, gelu=True), second.weight, second.bias) for part in parts]
        return (out[0] if len(out) == 1 else torch.cat(out)).view(x.shape)


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


_PLAIN = {nn.Linear, nn.Conv2d, nn.GELU, nn.Identity, BatchNormAct2d, DepthwiseConv, TokenConv}


def quicken(block: nn.Module) -> None:
    """Give the MLPs in a block of timm's the class that is faster on a CPU."""
    for part in block.modules():
        if type(part) is timm.layers.Mlp:
            part.__class__ = Mlp


def plain_layer(cls: type[ModuleT]) -> type[ModuleT]:
    """Mark a class of layers as one whose weights say all; see `is_plain`."""
    _PLAIN.add(cls)
    return cls


def is_plain(*layers: nn.Module) -> bool:
    """Whether layers are of known classes and unwatched, so that their weights may be used without calling them.

    An adapter, a quantised layer, a mask or a hook in their place must be called as a module.
    """
    return not _has_any_global_hook() and all(type(layer) in _PLAIN and not _is_watched(layer) for layer in layers)


def _is_watched(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or "forward" in vars(layer)  # libraries that move weights about set a `forward` on a layer


def bias_of(layer: nn.Module, x: Tensor) -> Tensor | None:
    """What a linear layer makes of a token of zeros, for x (..., C): its bias; what stands in its place is asked."""
    return layer.bias if is_plain(layer) else layer(x.new_zeros(1, x.shape[-1]))[0]


def attend_in_windows(
    qkv: Tensor, bias: Tensor | None, heads: int, window: tuple[int, int], scale: float | None = None
) -> Tensor:
    """Attention inside windows that hang over the map, where they find projected zeros.

    Args:
        qkv: (B, H, W, 3 * heads * D), what a linear layer makes of the map.
        bias: (3 * heads * D,), what it makes of a token of zeros: `bias_of` the layer.
        heads, window, scale: see `window_attention`.

    Returns:
        (B, H, W, heads * D).
    """
    three = [3, heads, -1]
    q, k, v = qkv.unflatten(3, three).unbind(3)
    pad = None if bias is None else bias.to(qkv.dtype).unflatten(0, three)
    return window_attention(q, k, v, window, scale=scale, pad=pad)
