"""DaViT on our operators: windows of neighbours and whole channels take turns as the tokens of attention.

Paper    Ding et al., DaViT: Dual Attention Vision Transformers, 2022, https://arxiv.org/abs/2204.03645; the `_fl` ones
         are the image towers of Xiao et al., Florence-2, 2023, https://arxiv.org/abs/2311.06242
Weights  timm's copies on the Hugging Face hub; files of https://github.com/dingmyu/davit (MIT) and of Florence-2 load
         too, renamed by `checkpoint_filter_fn`
Layout   timm's network and state-dict keys; maps at strides 4, 8, 16, 32; inside a stage, channels last
Sizes    any H, W from 32 up, odd ones too; windows that the map does not fill get tokens whose q, k, v are the bias
Options  `depths`, `window_size`, and all others of timm's `DaVit`
Kernel   window_attention, channel_attention, depthwise_conv
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import to_2tuple
from timm.models import davit, register_model, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional

from ..kernels._layout import is_eager
from ..kernels.channel_attention import channel_attention
from ..kernels.depthwise_conv import depthwise_conv
from ._checkpoint import find_weights
from ._fused import FusedNetwork, build_fused, check_pooling, fused_cfgs, fused_form_of, swap_modules
from ._keys import convert_keys, replace_parts
from ._layers import attend_in_windows, bias_of, is_plain, quicken
from ._pyramid import check_side, drop_path_ramp

__all__ = ["FusedDaVit"]


@fused_form_of(davit.Stem)
class FusedStem(davit.Stem):
    """A convolution of stride 4: (B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)).

    timm pads the image to a multiple of 4 first. The zeros that the convolution itself puts around it already do.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@register_notrace_module
@fused_form_of(davit.Downsample)
class FusedDownsample(davit.Downsample):
    """A norm and a convolution of stride 2: (B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2))."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.even_k:
            below, right = x.shape[2] % 2, x.shape[3] % 2
            if torch.jit.is_scripting():
                x = functional.pad(x, [0, right, 0, below])
            elif not is_eager(x):
                x = functional.pad(x, [0, 1, 0, 1])  # whatever the size: the convolution leaves the rest over
            elif below or right:
                x = functional.pad(x, [0, right, 0, below])
        return self.conv(x)


def _prepare_position(module: davit.ConvPosEnc) -> bool:
    module.activation = "gelu" if isinstance(module.act, nn.GELU) else None
    return True


@register_notrace_module
@fused_form_of(davit.ConvPosEnc, _prepare_position)
class FusedConvPosEnc(davit.ConvPosEnc):
    """Add what each pixel's neighbours say of its position: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._at_once(x)
        return self._at_once(x) if is_plain(self.proj) else x + self.act(self.proj(x))

    def _at_once(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.proj.weight, self.proj.bias, 1, self.activation, residual=x)


@register_notrace_module
class FusedWindowAttention(davit.WindowAttention):
    """Attention inside each window of a map: (B, H, W, C) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv(x.new_zeros([1, x.shape[3]]))[0] if torch.jit.is_scripting() else bias_of(self.qkv, x)
        return self.proj(attend_in_windows(self.qkv(x), bias, self.num_heads, self.window_size, self.scale))


@register_notrace_module
class FusedChannelAttention(davit.ChannelAttention):
    """Attention among the channels of each head: (B, H, W, C) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(2, [3, self.num_heads, -1]).unbind(2)
        return self.proj(channel_attention(q, k, v, self.scale)).view_as(x)


@register_notrace_module
class FusedChannelAttentionV2(davit.ChannelAttentionV2):
    """Attention among channels as Florence-2 does it: (B, H, W, C) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(2, [3, self.groups, -1]).unbind(2)
        scale = None if self.dynamic_scale else self.head_dim**-0.5
        return self.proj(channel_attention(q, k, v, scale, transposed=True)).view_as(x)


_ATTENTION = {
    davit.WindowAttention: FusedWindowAttention,
    davit.ChannelAttention: FusedChannelAttention,
    davit.ChannelAttentionV2: FusedChannelAttentionV2,
}


def _prepare_block(block: davit.SpatialBlock | davit.ChannelBlock) -> bool:
    attention = _ATTENTION.get(type(block.attn))
    if attention is None or block.mlp is None:
        return False
    block.attn.__class__ = attention
    quicken(block)
    return True


class _Block(nn.Module):
    """Attention, then an MLP, each behind a position encoding: (B, C, H, W) -> (B, C, H, W)."""

    if TYPE_CHECKING:  # what timm's classes bring
        cpe1: nn.Module
        norm1: nn.Module
        attn: nn.Module
        drop_path1: nn.Module
        cpe2: nn.Module
        norm2: nn.Module
        mlp: nn.Module
        drop_path2: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x).permute(0, 2, 3, 1).contiguous()  # (B, H, W, C): on a CPU a view, see `prepare_image`
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


@fused_form_of(davit.SpatialBlock, _prepare_block, attends=True)
class FusedSpatialBlock(_Block, davit.SpatialBlock):
    """A block whose tokens are pixels."""


@fused_form_of(davit.ChannelBlock, _prepare_block, attends=True)
class FusedChannelBlock(_Block, davit.ChannelBlock):
    """A block whose tokens are channels."""


@fused_form_of(davit.DaVit)
class FusedDaVit(FusedNetwork, davit.DaVit):
    """Four stages of pairs of blocks, one on windows and one on channels; the arguments are those of timm's `DaVit`."""

    def __init__(self, depths: tuple[int, ...] = (1, 1, 3, 1), global_pool: str = "avg", **kwargs: Any) -> None:
        drop_path_ramp(kwargs.get("drop_path_rate", 0.0), depths)  # for its errors
        for side in to_2tuple(kwargs.get("window_size", 7)):
            check_side("window_size", side)
        normed = not kwargs.get("head_norm_first", False)
        check_pooling(kwargs.get("num_classes", 1000), global_pool, classifies_maps=normed, widens=not normed)
        super().__init__(depths=tuple(depths), global_pool=global_pool, **kwargs)
        swap_modules(self)

    def _embed(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.norm_pre(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, **options: Any) -> None:
        super().reset_classifier(num_classes, global_pool, **options)
        self._init_weights(self.head.fc)

    def no_weight_decay(self) -> set[str]:
        """None: the authors decay all but vectors and biases, which timm exempts."""
        return set()


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: FusedDaVit) -> dict[str, Tensor]:
    """timm's file, the authors' (classifier or detector), or Florence-2's, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    weights = find_weights(checkpoint)
    tower = "vision_tower."
    florence = {key.removeprefix(tower): value for key, value in weights.items() if key.startswith(tower)}
    return convert_keys(florence or weights, model, _rename)


_BLOCK_PARTS = {
    # the authors'
    ".cpe.0.": ".cpe1.",
    ".cpe.1.": ".cpe2.",
    # Florence-2's
    ".window_attn.norm.": ".norm1.",
    ".channel_attn.norm.": ".norm1.",
    ".window_attn.fn.": ".attn.",
    ".channel_attn.fn.": ".attn.",
    ".ffn.norm.": ".norm2.",
    ".ffn.fn.net.": ".mlp.",
    ".conv1.fn.dw.": ".cpe1.proj.",
    ".conv2.fn.dw.": ".cpe2.proj.",
}


def _rename(key: str) -> str | None:
    """`main_blocks.0.0.1.cpe.0.proj.bias` -> `stages.0.blocks.0.1.cpe1.proj.bias`; timm's keys stay as they are."""
    if re.match(r"norm\d\.", key):  # of a detector's outputs
        return None
    key = re.sub(r"^norms\.", "head.norm.", key)
    key = re.sub(r"^(?:patch_embeds|convs)\.(\d+)\.", r"stages.\1.downsample.", key)
    key = key.replace(".downsample.proj.", ".downsample.conv.").replace("stages.0.downsample.", "stem.")
    key, staged = re.subn(r"^(?:main_)?blocks\.(\d+)\.", r"stages.\1.blocks.", key)
    return replace_parts(key, _BLOCK_PARTS) if staged else key


def _facts(name: str, tag: str) -> dict[str, Any]:
    if name.endswith("_fl"):
        return {
            "paper_ids": "arXiv:2311.06242",
            "paper_name": "Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks",
            "origin_url": f"https://huggingface.co/microsoft/Florence-2-{'base' if 'base' in name else 'large'}",
        }
    return {
        "paper_ids": "arXiv:2204.03645",
        "paper_name": "DaViT: Dual Attention Vision Transformers",
        "origin_url": "https://github.com/dingmyu/davit",
    }


default_cfgs = fused_cfgs(davit.default_cfgs, "davit_", 32, _facts)

_TINY = dict(embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24))
_BASE = dict(embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32))
_HUGE = dict(embed_dims=(256, 512, 1024, 2048), num_heads=(8, 16, 32, 64))
_FLORENCE = dict(window_size=12, down_kernel_size=3, channel_attn_v2=True, named_blocks=True)
_NINE = (1, 1, 9, 1)


def _create_davit(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> FusedDaVit:
    return build_fused(FusedDaVit, name, pretrained, checkpoint_filter_fn, levels=4, **(sizes | kwargs))


@register_model
def davit_tiny_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """28.4 M parameters, 4.5 GFLOPs, 82.8 % top-1."""
    return _create_davit("davit_tiny_fused", pretrained, kwargs, depths=(1, 1, 3, 1), **_TINY)


@register_model
def davit_small_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """49.7 M parameters, 8.8 GFLOPs, 84.2 % top-1."""
    return _create_davit("davit_small_fused", pretrained, kwargs, depths=_NINE, **_TINY)


@register_model
def davit_base_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """88.0 M parameters, 15.5 GFLOPs, 84.6 % top-1."""
    return _create_davit("davit_base_fused", pretrained, kwargs, depths=_NINE, **_BASE)


@register_model
def davit_large_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """196.8 M parameters; no public weights."""
    sizes = dict(embed_dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48))
    return _create_davit("davit_large_fused", pretrained, kwargs, depths=_NINE, **sizes)


@register_model
def davit_huge_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """348.9 M parameters; no public weights."""
    return _create_davit("davit_huge_fused", pretrained, kwargs, depths=_NINE, **_HUGE)


@register_model
def davit_giant_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """1406.5 M parameters; no public weights."""
    sizes = dict(embed_dims=(384, 768, 1536, 3072), num_heads=(12, 24, 48, 96))
    return _create_davit("davit_giant_fused", pretrained, kwargs, depths=(1, 1, 12, 3), **sizes)


@register_model
def davit_base_fl_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """90.4 M parameters, no classifier: the image tower of Florence-2-base, for images of 768 pixels."""
    return _create_davit("davit_base_fl_fused", pretrained, kwargs, depths=_NINE, **_BASE, **_FLORENCE)


@register_model
def davit_huge_fl_fused(pretrained: bool = False, **kwargs: Any) -> FusedDaVit:
    """360.6 M parameters, no classifier: the image tower of Florence-2-large, for images of 768 pixels."""
    return _create_davit("davit_huge_fl_fused", pretrained, kwargs, depths=_NINE, **_HUGE, **_FLORENCE)
