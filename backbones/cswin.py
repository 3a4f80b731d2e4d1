"""CSWin: attention in stripes, half of the heads along the columns of the map and half along its rows.

Paper    Dong et al., CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, CVPR 2022,
         https://arxiv.org/abs/2107.00652
Weights  https://github.com/microsoft/CSWin-Transformer (MIT), renamed by `checkpoint_filter_fn`
Layout   (B, H, W, C) inside a stage; maps at strides 4, 8, 16, 32 leave without a norm, the last one is normed before
         the classifier
Sizes    any H, W from 32 up: where stripes do not fill a map, q, k and v are padded with zeros around it, as in the
         authors' segmentation code; nothing is fixed when the model is built. The last stage attends over its whole map
Options  `depths`; `stripes`, the widths of the stripes (2, 7 and 12 in the last stages of the published models)
Kernels  window_attention; global_attention and depthwise_conv in the last stage
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn

from ..kernels._layout import missing, pad_map
from ..kernels.global_attention import global_attention
from ..kernels.window_attention import window_attention
from ._keys import convert_keys, replace_parts
from ._layers import Block, Mlp, TokenConv, is_plain
from ._pyramid import Pyramid, TokenStage, build, check_sides, drop_path_ramp, weights_cfg

__all__ = ["CSWin"]

EPS = 1e-5  # of every LayerNorm


def _depthwise(dim: int, **dd: Any) -> nn.Conv2d:
    """The position encoding of one branch. `window_attention` applies its weights inside each stripe, to the values."""
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)


@register_notrace_module
class CrossAttention(nn.Module):
    """Attention in full-height stripes by the first half of the heads, in full-width ones by the other half.

    (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, dim: int, heads: int, stripe: int, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.stripe = stripe
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = nn.ModuleList([_depthwise(dim // 2, **dd), _depthwise(dim // 2, **dd)])
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        stripe = self.stripe
        q, k, v = self.qkv(x).reshape(batch, height, width, 3, self.heads, dim // self.heads).unbind(3)
        columns, beside = (height, stripe), (0, missing(width, stripe) // 2)
        rows, above = (stripe, width), (missing(height, stripe) // 2, 0)
        if torch.jit.is_scripting():
            return self.proj(self._attend(q, k, v, columns, beside, rows, above))
        if is_plain(self.lepe[0]) and is_plain(self.lepe[1]):
            return self.proj(self._attend(q, k, v, columns, beside, rows, above))
        out = window_attention(q, k, v, columns, pad_offset=beside, cross_window=rows, cross_offset=above)
        halves = v.flatten(3).chunk(2, 3)
        near = [self._encode(0, halves[0], columns, beside), self._encode(1, halves[1], rows, above)]
        return self.proj(out + torch.cat(near, 3))

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        columns: tuple[int, int],
        beside: tuple[int, int],
        rows: tuple[int, int],
        above: tuple[int, int],
    ) -> Tensor:
        """Attention and position encoding at once: (B, H, W, heads, D) -> (B, H, W, heads * D)."""
        first, second = self.lepe[0].bias, self.lepe[1].bias
        return window_attention(
            q,
            k,
            v,
            columns,
            pad_offset=beside,
            lepe_weight=torch.cat([self.lepe[0].weight, self.lepe[1].weight]),
            lepe_bias=None if first is None or second is None else torch.cat([first, second]),
            cross_window=rows,
            cross_offset=above,
        )

    @torch.jit.unused
    def _encode(self, branch: int, v: Tensor, window: tuple[int, int], offset: tuple[int, int]) -> Tensor:
        """What a module in the place of a convolution makes of v (B, H, W, C), called in each window: (B, H, W, C)."""
        lepe = self.lepe[branch]
        (top, left), (height, width), (wh, ww) = offset, v.shape[1:3], window
        v = pad_map(v, top, missing(top + height, wh), left, missing(left + width, ww))
        cut = v.unflatten(2, (-1, ww)).unflatten(1, (-1, wh)).permute(0, 1, 3, 5, 2, 4)  # (B, rows, columns, C, wh, ww)
        out = lepe(cut.flatten(0, 2)).unflatten(0, cut.shape[:3]).permute(0, 1, 4, 2, 5, 3)
        return out.flatten(3, 4).flatten(1, 2)[:, top : top + height, left : left + width]


@register_notrace_module
class MapAttention(nn.Module):
    """Attention over the whole map: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = nn.ModuleList([TokenConv(dim, 3, **dd)])
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.reshape(batch, height * width, 3, self.heads, dim // self.heads).unbind(2)
        out = global_attention(q, k, v).reshape(batch, height, width, dim)
        return self.proj(self.lepe[0](qkv.chunk(3, -1)[2], out))


class CSWin(Pyramid):
    """Four stages, each a strided convolution with a LayerNorm and `depths[i]` blocks; their width doubles each time.

    Args:
        depths: blocks a stage.
        dim: channels of the first stage.
        heads: heads a stage, even in the first three.
        stripes: widths of the stripes in the first three stages.
        mlp_ratio: hidden channels of a block's MLP over its channels.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
        others: see `Pyramid`.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (1, 2, 21, 1),
        dim: int = 64,
        heads: tuple[int, ...] = (2, 4, 8, 16),
        stripes: tuple[int, ...] = (1, 2, 7),
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        check_sides("stripes", stripes, 3)
        rates = drop_path_ramp(drop_path_rate, depths)
        dims = tuple(dim * 2**i for i in range(4))
        stages = []
        for i, (before, here) in enumerate(pairwise((in_chans, *dims))):
            kernel, stride, padding = (3, 2, 1) if i else (7, 4, 2)
            conv = nn.Conv2d(before, here, kernel, stride, padding, **dd)
            downsample = nn.Sequential(OrderedDict(conv=conv, norm=LayerNorm2d(here, eps=EPS, **dd)))
            blocks = []
            for rate in rates[i]:
                attn = (
                    MapAttention(here, heads[i], **dd) if i == 3 else CrossAttention(here, heads[i], stripes[i], **dd)
                )
                blocks.append(Block(here, attn, Mlp(here, here * mlp_ratio, **dd), rate, EPS, **dd))
            stages.append(TokenStage(downsample, blocks))
        super().__init__(
            stages,
            dims,
            LayerNorm2d(dims[-1], eps=EPS, **dd),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: CSWin) -> dict[str, Tensor]:
    """The authors' checkpoint, classifier or segmentation, or one of ours, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    return convert_keys(checkpoint, model, _rename)


_BLOCK_PARTS = {".qkv.": ".attn.qkv.", ".proj.": ".attn.proj.", ".attns.": ".attn.lepe.", ".get_v.": "."}


def _rename(key: str) -> str | None:
    """`stage1.0.attns.0.get_v.weight` -> `stages.0.blocks.0.attn.lepe.0.weight`; keys of ours stay as they are."""
    if re.match(r"norm[1-4]\.", key):
        return None  # output norms of the segmentation code
    key = key.replace("stage1_conv_embed.0.", "stages.0.downsample.conv.")
    key = key.replace("stage1_conv_embed.2.", "stages.0.downsample.norm.")
    key = re.sub(r"^merge(\d)\.", r"stages.\1.downsample.", key)
    key, staged = re.subn(r"^stage(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", key)
    return replace_parts(key, _BLOCK_PARTS) if staged else key


def _cfg(file: str = "", **entries: Any) -> dict[str, Any]:
    return weights_cfg(
        url=file and f"https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0/{file}.pth",
        license="mit",
        paper_ids="arXiv:2107.00652",
        paper_name="CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows",
        origin_url="https://github.com/microsoft/CSWin-Transformer",
        **{"crop_pct": 0.9, **entries},
    )


_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "cswin_tiny.in1k": _cfg("cswin_tiny_224"),
        "cswin_small.in1k": _cfg("cswin_small_224"),
        "cswin_base.in1k": _cfg("cswin_base_224"),
        "cswin_large.in22k_ft_in1k": _cfg("cswin_large_224"),
        "cswin_large.in22k": _cfg("cswin_large_22k_224", num_classes=21841),
        "cswin_base_384.in1k": _cfg("cswin_base_384", **_AT_384),
        "cswin_large_384.in22k_ft_in1k": _cfg("cswin_large_384", **_AT_384),
    }
)

_SMALL = {"depths": (2, 4, 32, 2)}
_BASE = {"depths": (2, 4, 32, 2), "dim": 96, "heads": (4, 8, 16, 32)}
_LARGE = {"depths": (2, 4, 32, 2), "dim": 144, "heads": (6, 12, 24, 24)}


def _create_cswin(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> CSWin:
    return build(CSWin, name, pretrained, checkpoint_filter_fn, **(sizes | kwargs))


@register_model
def cswin_tiny(pretrained: bool = False, **kwargs: Any) -> CSWin:
    """22.3 M parameters, 4.3 GFLOPs, 82.8 % top-1."""
    return _create_cswin("cswin_tiny", pretrained, kwargs)


@register_model
def cswin_small(pretrained: bool = False, **kwargs: Any) -> CSWin:
    """34.6 M parameters, 6.9 GFLOPs, 83.6 % top-1."""
    return _create_cswin("cswin_small", pretrained, kwargs, **_SMALL)


@register_model
def cswin_base(pretrained: bool = False, **kwargs: Any) -> CSWin:
    """77.4 M parameters, 15.0 GFLOPs, 84.2 % top-1."""
    return _create_cswin("cswin_base", pretrained, kwargs, **_BASE)


@register_model
def cswin_large(pretrained: bool = False, **kwargs: Any) -> CSWin:
    """173.3 M parameters, 31.5 GFLOPs; from ImageNet-22K 86.5 % top-1."""
    return _create_cswin("cswin_large", pretrained, kwargs, **_LARGE)


@register_model
def cswin_base_384(pretrained: bool = False, **kwargs: Any) -> CSWin:
    """77.4 M parameters; at 384 pixels, stripes of 12: 47.0 GFLOPs, 85.5 % top-1."""
    return _create_cswin("cswin_base_384", pretrained, kwargs, **_BASE, stripes=(1, 2, 12))


@register_model
def cswin_large_384(pretrained: bool = False, **kwargs: Any) -> CSWin:
    """173.3 M parameters; at 384 pixels, stripes of 12: 96.8 GFLOPs; from ImageNet-22K 87.5 % top-1."""
    return _create_cswin("cswin_large_384", pretrained, kwargs, **_LARGE, stripes=(1, 2, 12))
