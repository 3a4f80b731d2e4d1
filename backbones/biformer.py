"""BiFormer: each region of the map finds the few regions that matter to it and attends to their tokens alone.

Paper    Zhu et al., BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023,
         https://arxiv.org/abs/2303.08810
Weights  https://github.com/rayleizhu/BiFormer (MIT), renamed by `checkpoint_filter_fn`
Layout   tokens (B, H, W, C) inside stages; maps at strides 4, 8, 16, 32, no norm on what leaves
Sizes    any H, W from 32 up, odd ones too; maps that regions do not fill are padded
Limits   the number of regions is fixed, so they grow with the image: time grows with (H W) ** 2, as in the last stage,
         which attends globally. Memory grows with H W, because routed keys are gathered a few regions at a time
Options  `depths`; `n_win`: regions a side, 7 as the classifiers were trained, 16 in the authors' detectors, 8 in their
         segmentors, the weights are the same; `auto_pad=False` refuses sizes that regions do not fill
Kernel   routing_attention (stages 1 to 3), global_attention (stage 4), depthwise_conv
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional

from ..kernels._kept import kept
from ..kernels._layout import is_compiled, is_eager, pad_map
from ..kernels._precision import without_autocast
from ..kernels.global_attention import global_attention
from ..kernels.routing_attention import routing_attention
from ._checkpoint import find_weights
from ._errors import UserError
from ._keys import convert_keys
from ._layers import Block, Mlp, TokenConv
from ._pyramid import Pyramid, TokenStage, build, drop_path_ramp, weights_cfg

__all__ = ["BiFormer"]

_HEAD_DIM = 32  # of routed attention
_GLOBAL_HEADS = 8  # of the last stage, whatever its width
_TOP_K = (1, 4, 16)  # regions that a region attends to, by stage; the last stage attends to all tokens


def _means(x: Tensor, regions: tuple[int, int], tall: int, wide: int) -> Tensor:
    """Means of the regions of tall x wide tokens, in float32 or better: (B, H, W, C) -> (B, regions, C).

    Regions at the bottom and right may hang over the map; what they hold of it counts.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if torch.jit.is_scripting():  # which cannot turn off autocast, to which a pooling is no matter
        x = functional.avg_pool2d(x.permute(0, 3, 1, 2), [tall, wide], ceil_mode=True)
        return x.flatten(2).transpose(1, 2)
    batch, height, width, dim = x.shape
    rows, columns = regions
    across = kept(x, _averages, columns, width, wide, x.dtype, x.device)
    down = kept(x, _averages, rows, height, tall, x.dtype, x.device)
    x = down @ (across @ x).reshape(batch, height, columns * dim)
    return x.reshape(batch, rows * columns, dim)


def _averages(count: int, length: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (count, length) that averages `side` neighbours at a time; at the end, as many as there are."""
    inside = torch.arange(count, device=device)[:, None] == torch.arange(length, device=device) // side
    return inside.to(dtype) / inside.sum(1, keepdim=True)


def _route(qkv: Tensor, regions: tuple[int, int], tall: int, wide: int, top_k: int) -> Tensor:
    """The regions whose mean keys fit the mean query of each region best: (B, H, W, 3 C) -> (B, regions, top_k).

    Autocast must not round the scores: where two are close, another region would be taken.
    """
    q_and_k = qkv.detach()[..., : qkv.shape[-1] // 3 * 2]
    if torch.jit.is_scripting():
        return _best(_means(q_and_k, regions, tall, wide).double(), top_k)  # float64, too, is beyond autocast's reach
    with without_autocast(qkv):
        return _best(_means(q_and_k, regions, tall, wide), top_k)


def _best(means: Tensor, top_k: int) -> Tensor:
    q, k = means.chunk(2, -1)
    return (q @ k.transpose(1, 2)).topk(top_k)[1]


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    """The top left of a map (B, H', W', C): (B, height, width, C)."""
    if torch.jit.is_scripting():
        return x[:, :height, :width]
    if torch.compiler.is_compiling():  # to which a slice of everything is another thing than a slice
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        return x.index_select(1, rows).index_select(2, columns)
    return x[:, :height, :width]


def _check_divides(x: Tensor, n_win: int) -> None:
    height, width = x.shape[1:3]
    if is_eager(x) and (height % n_win or width % n_win):
        raise UserError(
            f"auto_pad=False needs maps whose sides n_win={n_win} divides, and one is {height}x{width}; "
            f"images whose sides are multiples of {16 * n_win} give such maps"
        )


class RoutedAttention(nn.Module):
    """Attention of each region to the `top_k` regions whose mean key fits its mean query best, plus a convolution of v.

    (B, H, W, C) -> (B, H, W, C). Zeros at the bottom and right fill the map up to `n_win` x `n_win` regions of
    ceil(H / n_win) x ceil(W / n_win) tokens. They are tokens like any other: they count in means, and are keys.
    """

    def __init__(self, dim: int, top_k: int, n_win: int, auto_pad: bool, **dd: Any) -> None:
        super().__init__()
        self.heads = dim // _HEAD_DIM
        self.scale = dim**-0.5  # of the width of all heads, not of one
        self.top_k = top_k
        self.n_win = n_win
        self.auto_pad = auto_pad
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = TokenConv(dim, 5, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        height, width, n = x.shape[1], x.shape[2], self.n_win
        tall, wide = (height + n - 1) // n, (width + n - 1) // n
        if self.auto_pad:
            x = pad_map(x, 0, tall * n - height, 0, wide * n - width)
        elif not torch.jit.is_scripting():
            _check_divides(x, n)
        qkv = self.qkv(x)
        index = _route(qkv, (n, n), tall, wide, min(self.top_k, n * n))
        out = self.lepe(qkv.chunk(3, -1)[2], self.attend(qkv, index, (n, n)))
        return self.proj(_crop(out, height, width))

    def attend(self, qkv: Tensor, index: Tensor, regions: tuple[int, int]) -> Tensor:
        """Tokens (B, H, W, 3 C) to those of the routed regions: (B, H, W, C)."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(3)
        return routing_attention(q, k, v, index, self.scale, regions)


register_notrace_module(RoutedAttention)  # as a decorator it would hide the class from type checkers


@register_notrace_module
class FlooredRoutedAttention(RoutedAttention):
    """The same with regions of floor(H / n_win) x floor(W / n_win) tokens, and more than `n_win` a side for the rest.

    (B, H, W, C) -> (B, H, W, C). Here the q, k and v of padded tokens are zero; they are keys, but do not count in
    means. Where `n_win` divides the map's sides, this and its parent are one.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width, n = x.shape[1], x.shape[2], self.n_win
        if not (self.auto_pad or torch.jit.is_scripting()):
            _check_divides(x, n)
        tall, wide = _larger(1, height // n), _larger(1, width // n)
        rows, columns = _larger(1, (height + tall - 1) // tall), _larger(1, (width + wide - 1) // wide)
        qkv = self.qkv(x)
        index = _route(qkv, (rows, columns), tall, wide, _smaller(self.top_k, rows * columns))
        padded = pad_map(qkv, 0, rows * tall - height, 0, columns * wide - width)
        out = _crop(self.attend(padded, index, (rows, columns)), height, width)
        return self.proj(self.lepe(qkv.chunk(3, -1)[2], out))


def _larger(a: int, b: int) -> int:
    """The larger of two numbers, which may be symbols, in a way that compares no symbols."""
    if torch.jit.is_scripting():
        return max(a, b)
    return max(a, b) if torch.jit.is_tracing() or is_compiled() else torch.sym_max(a, b)


def _smaller(a: int, b: int) -> int:
    if torch.jit.is_scripting():
        return min(a, b)
    return min(a, b) if torch.jit.is_tracing() or is_compiled() else torch.sym_min(a, b)


@register_notrace_module
class GlobalAttention(nn.Module):
    """Attention among all tokens, plus a convolution of the input, or of v: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, lepe_of_v: bool, **dd: Any) -> None:
        super().__init__()
        self.heads = _GLOBAL_HEADS
        self.lepe_of_v = lepe_of_v
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.lepe = TokenConv(dim, 5, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x)
        size = (batch, height * width, 3, self.heads, dim // self.heads)
        q, k, v = qkv.reshape(size).unbind(2)
        out = global_attention(q, k, v).reshape(batch, height, width, dim)
        return self.proj(self.lepe(qkv.chunk(3, -1)[2] if self.lepe_of_v else x, out))


class PositionedBlock(Block):
    """A block that first adds where each token is: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float, eps: float, **dd: Any) -> None:
        super().__init__(dim, attn, mlp, drop_path, eps, **dd)
        self.pos_embed = TokenConv(dim, 3, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x, x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BiFormer(Pyramid):
    """Four stages, each a downsampling and `depths[i]` blocks of `dims[i]` channels, and a BatchNorm before pooling.

    Args:
        depths: blocks a stage.
        dims: channels a stage, multiples of 32.
        mlp_ratio: hidden channels of a block's MLP over its channels.
        n_win: regions a side.
        auto_pad: pad maps that regions do not fill; otherwise they are refused.
        swin_layout: downsample as Swin does, by convolutions that do not overlap; blocks have no `pos_embed`.
        floored: regions of floor(H / n_win) tokens a side instead of ceil, and the last stage convolves v.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
        others: see `Pyramid`.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        mlp_ratio: int = 3,
        n_win: int = 7,
        auto_pad: bool = True,
        swin_layout: bool = False,
        floored: bool = False,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        if type(n_win) is not int or n_win < 1:
            raise UserError(f"n_win is {n_win!r}; it takes a whole number of regions a side, 1 or more")
        if auto_pad not in (True, False):
            raise UserError(f"auto_pad is {auto_pad!r}; it takes True or False")
        rates = drop_path_ramp(drop_path_rate, depths)
        routed = FlooredRoutedAttention if floored else RoutedAttention
        block = Block if swin_layout else PositionedBlock
        stages = []
        for i, (chans, dim) in enumerate(pairwise((in_chans, *dims))):
            blocks = []
            for rate in rates[i]:
                attn = routed(dim, _TOP_K[i], n_win, auto_pad, **dd) if i < 3 else GlobalAttention(dim, floored, **dd)
                mlp = Mlp(dim, dim * mlp_ratio, **dd)
                blocks.append(block(dim, attn, mlp, rate, eps=1e-6, **dd))
            stages.append(TokenStage(_downsample(chans, dim, i, swin_layout, **dd), blocks))
        super().__init__(
            stages,
            dims,
            norm=nn.BatchNorm2d(dims[-1], **dd),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )


def _downsample(chans: int, dim: int, stage: int, swin_layout: bool, **dd: Any) -> nn.Sequential:
    """(B, chans, H, W) -> (B, dim, H', W'); the children stand where the authors number theirs."""
    if swin_layout:
        size = 2 if stage else 4
        conv, norm = nn.Conv2d(chans, dim, size, size, **dd), nn.BatchNorm2d(chans if stage else dim, **dd)
        return nn.Sequential(OrderedDict(norm=norm, conv=conv) if stage else OrderedDict(conv=conv, norm=norm))
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stage == 0:
        half = dim // 2
        parts.update(conv0=nn.Conv2d(chans, half, 3, 2, 1, **dd), norm0=nn.BatchNorm2d(half, **dd), act=nn.GELU())
        chans = half
    parts.update(conv=nn.Conv2d(chans, dim, 3, 2, 1, **dd), norm=nn.BatchNorm2d(dim, **dd))
    return nn.Sequential(parts)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: BiFormer) -> dict[str, Tensor]:
    """The authors' checkpoint, classifier or detector, or one of ours, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    weights = find_weights(checkpoint)
    weights = {key: value.flatten(1) if value.shape[2:] == (1, 1) else value for key, value in weights.items()}
    return convert_keys(weights, model, partial(_rename, model=model))


_BLOCK_PARTS = {
    r"\.attn\.(?:qkv\.qkv|qkv_linear)\.": ".attn.qkv.",
    r"\.attn\.(?:wo|output_linear)\.": ".attn.proj.",
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.[23]\.": ".mlp.fc2.",
}


def _rename(key: str, model: BiFormer) -> str | None:
    """`stages.0.1.mlp.3.bias` -> `stages.0.blocks.1.mlp.fc2.bias`; keys of ours stay as they are."""
    if key.startswith("extra_norms."):
        return None  # a detector's norms of the maps that leave
    key = re.sub(r"^(stages\.\d+)\.(\d+)\.", r"\1.blocks.\2.", key)
    for theirs, ours in _BLOCK_PARTS.items():
        key = re.sub(theirs, ours, key)
    numbered = re.match(r"downsample_layers\.(\d)\.(\d)\.", key)
    if numbered:
        stage, child = int(numbered[1]), int(numbered[2])
        names = [name for name, _ in model.stages[stage].downsample.named_children()]
        if child < len(names):
            return f"stages.{stage}.downsample.{names[child]}.{key[numbered.end() :]}"
    return key


def _in1k(first_conv: str = "stages.0.downsample.conv0") -> dict[str, Any]:
    """The authors give a share on OneDrive, which is no direct link."""
    return weights_cfg(
        license="mit",
        paper_ids="arXiv:2303.08810",
        paper_name="BiFormer: Vision Transformer with Bi-Level Routing Attention",
        origin_url="https://github.com/rayleizhu/BiFormer",
        first_conv=first_conv,
    )


default_cfgs = generate_default_cfgs(
    {
        "biformer_tiny.in1k*": _in1k(),
        "biformer_small.in1k*": _in1k(),
        "biformer_base.in1k*": _in1k(),
        "biformer_stl.in1k*": _in1k("stages.0.downsample.conv"),
        "biformer_stl_nchw.in1k*": _in1k("stages.0.downsample.conv"),
    }
)


def _create_biformer(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> BiFormer:
    return build(BiFormer, name, pretrained, checkpoint_filter_fn, **(sizes | kwargs))


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """13.1 M parameters, 2.2 GFLOPs, 81.4 % top-1."""
    return _create_biformer("biformer_tiny", pretrained, kwargs, depths=(2, 2, 8, 2))


@register_model
def biformer_small(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """25.5 M parameters, 4.5 GFLOPs, 83.8 % top-1."""
    return _create_biformer("biformer_small", pretrained, kwargs, depths=(4, 4, 18, 4))


@register_model
def biformer_base(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """56.8 M parameters, 9.8 GFLOPs, 84.3 % top-1."""
    return _create_biformer("biformer_base", pretrained, kwargs, depths=(4, 4, 18, 4), dims=(96, 192, 384, 768))


_SWIN = {"depths": (2, 2, 6, 2), "dims": (96, 192, 384, 768), "mlp_ratio": 4, "swin_layout": True}


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """28.4 M parameters, 4.6 GFLOPs, 82.7 % top-1. In Swin-T's layout: its depths, widths and downsampling."""
    return _create_biformer("biformer_stl", pretrained, kwargs, **_SWIN)


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """28.4 M parameters, 4.6 GFLOPs, 82.7 % top-1. Regions differ from `biformer_stl`, and stage 4 convolves v."""
    return _create_biformer("biformer_stl_nchw", pretrained, kwargs, **_SWIN, floored=True)
