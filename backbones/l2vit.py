"""L2ViT: blocks of local windows take turns with blocks of linear attention over the whole map.

Paper    Zheng, The Linear Attention Resurrection in Vision Transformer, 2025, https://arxiv.org/abs/2501.16182
Weights  https://github.com/ChuanyangZheng/L2ViT (code MIT), renamed by `checkpoint_filter_fn`
Layout   tokens (B, H, W, C) inside a stage; maps at strides 4, 8, 16, 32, no norm after a stage, one after the last
Sizes    any H, W from 32 up, odd ones too: image, maps and windows are padded with zeros where the authors pad them
Options  `depths`, and `window_size`: 7, but 12 in the model trained at 384 pixels
Kernels  window_attention, linear_attention, and depthwise_conv for what each block knows of positions
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_function, register_notrace_module
from torch import Tensor, nn

from ..kernels._layout import fill_map, in_order
from ..kernels.linear_attention import linear_attention
from ._keys import convert_keys, replace_parts
from ._layers import DepthwiseConv, Mlp, TokenConv, attend_in_windows, bias_of
from ._pyramid import AT_384, Pyramid, TokenStage, build, check_side, drop_path_ramp, weights_cfg

__all__ = ["L2ViT"]

HEAD_DIM = 32


@register_notrace_module
class WindowAttention(nn.Module):
    """Attention in square windows: (B, H, W, C) -> (B, H, W, C).

    Windows that hang over the map find there what a projection makes of zeros: its bias.
    """

    def __init__(self, dim: int, window: int, **dd: Any) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.window = (window, window)
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv(x.new_zeros([1, x.shape[3]]))[0] if torch.jit.is_scripting() else bias_of(self.qkv, x)
        return self.proj(attend_in_windows(self.qkv(x), bias, self.heads, self.window))


@register_notrace_module
class LinearAttention(nn.Module):
    """Attention of every pixel to the whole map, at a cost that grows with the pixels: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        # three dimensions, as the authors have it: so it is decayed, which vectors are not
        self.temperature = nn.Parameter(torch.full((self.heads, 1, 1), HEAD_DIM**-0.5, **dd))
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1)).unbind(2)
        return self.proj(linear_attention(q, k, v, self.temperature.flatten())).view(x.shape)


class LocalConcentration(nn.Module):
    """Two depthwise 7 x 7 convolutions, which give each pixel its surroundings back: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = DepthwiseConv(dim, 7, activation="gelu", **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.conv2 = DepthwiseConv(dim, 7, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(self.conv1(in_order(x.permute(0, 3, 1, 2))))).permute(0, 2, 3, 1)


class WindowBlock(nn.Module):
    """Position, attention in windows, position, MLP, all added to the stream: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, window: int, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.position1 = TokenConv(dim, 3, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = WindowAttention(dim, window, **dd)
        self.position2 = TokenConv(dim, 3, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x, residual=x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = self.position2(x, residual=x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class GlobalBlock(nn.Module):
    """Position, attention to the whole map, surroundings, MLP, all added: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.position1 = TokenConv(dim, 3, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = LinearAttention(dim, **dd)
        self.norm3 = nn.LayerNorm(dim, **dd)
        self.local = LocalConcentration(dim, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x, residual=x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.local(self.norm3(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stem(nn.Module):
    """The image in patches of 4 pixels, by two convolutions: (B, in_chans, H, W) -> (B, C, H/4, W/4), rounded up."""

    def __init__(self, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(dim // 2, **dd)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.norm = LayerNorm2d(dim, eps=1e-5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(_fill(x, 4))).relu_()
        return self.norm(self.norm2(self.conv2(x)))


class Downsample(nn.Module):
    """Half the sides, rounded up: (B, C_in, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.norm = LayerNorm2d(chans, eps=1e-5, **dd)
        self.conv = nn.Conv2d(chans, dim, 2, stride=2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_fill(self.norm(x), 2))


@register_notrace_function
def _fill(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and right of a map (B, C, H, W), to sides that are multiples of a number."""
    return in_order(fill_map(x.permute(0, 2, 3, 1), multiple).permute(0, 3, 1, 2))


class L2ViT(Pyramid):
    """Four stages of `depths[i]` blocks with `dims[i]` channels, in heads of 32.

    In each stage the blocks take turns: windows first, then the whole map.

    Args:
        depths: blocks a stage.
        dims: channels a stage, multiples of 32.
        window_size: side of a window, in pixels of the map; the weights fit any.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
        others: see `Pyramid`.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        check_side("window_size", window_size)
        stages = []
        for i, rates in enumerate(drop_path_ramp(drop_path_rate, depths)):
            dim = dims[i]
            downsample = Downsample(dims[i - 1], dim, **dd) if i else Stem(in_chans, dim, **dd)
            blocks = [
                GlobalBlock(dim, rate, **dd) if j % 2 else WindowBlock(dim, window_size, rate, **dd)
                for j, rate in enumerate(rates)
            ]
            stages.append(TokenStage(downsample, blocks))
        super().__init__(
            stages,
            dims,
            norm=LayerNorm2d(dims[-1], eps=1e-5, **dd),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: L2ViT) -> dict[str, Tensor]:
    """The authors' checkpoint, classifier or detector, or one of ours, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    return convert_keys(checkpoint, model, _rename)


_PARTS = {
    ".downsample.proj.proj.0.": ".downsample.conv1.",
    ".downsample.proj.proj.1.": ".downsample.norm1.",
    ".downsample.proj.proj.3.": ".downsample.conv2.",
    ".downsample.proj.proj.4.": ".downsample.norm2.",
    ".downsample.proj.": ".downsample.conv.",
    ".cpe.0.proj.": ".position1.",
    ".cpe.1.proj.": ".position2.",
    ".local_mp.bn.": ".local.norm.",
    ".local_mp.": ".local.",
}


def _rename(key: str) -> str | None:
    """`stages.0.1.local_mp.conv1.weight` -> `stages.0.blocks.1.local.conv1.weight`; keys of ours stay as they are."""
    key = key.removeprefix("encoder.")
    if re.match(r"norm\d\.", key):
        return None  # a detector's norm of one output
    key, downsampling = re.subn(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample.", key)
    key, in_block = re.subn(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", key)
    return replace_parts(key, _PARTS) if downsampling or in_block else key


def _cfg(file: str, **entries: Any) -> dict[str, Any]:
    return weights_cfg(
        url=f"https://github.com/ChuanyangZheng/L2ViT/releases/download/v1.0/L2ViT-{file}.pth",
        license="mit",
        paper_ids="arXiv:2501.16182",
        paper_name="The Linear Attention Resurrection in Vision Transformer",
        origin_url="https://github.com/ChuanyangZheng/L2ViT",
        first_conv="stages.0.downsample.conv1",
        **entries,
    )


default_cfgs = generate_default_cfgs(
    {
        "l2vit_tiny.in1k": _cfg("Tiny-checkpoint-best-ema"),
        "l2vit_small.in1k": _cfg("Small-checkpoint-best-ema"),
        "l2vit_base.in1k": _cfg("Base-checkpoint-best-ema"),
        "l2vit_base.in22k": _cfg("Base-22k-pretrain-checkpoint-best", num_classes=21841),
        "l2vit_base.in22k_ft_in1k": _cfg("Base-22k21k-finetune-224-checkpoint-best"),
        "l2vit_base_384.in22k_ft_in1k": _cfg("Base-22k21k-finetune-384-checkpoint-best", **AT_384),
    }
)


def _create_l2vit(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> L2ViT:
    return build(L2ViT, name, pretrained, checkpoint_filter_fn, **(sizes | kwargs))


@register_model
def l2vit_tiny(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """28.6 M parameters, 4.7 GFLOPs, 83.1 % top-1."""
    return _create_l2vit("l2vit_tiny", pretrained, kwargs, depths=(2, 2, 6, 2))


@register_model
def l2vit_small(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """50.2 M parameters, 9.0 GFLOPs, 84.1 % top-1."""
    return _create_l2vit("l2vit_small", pretrained, kwargs, depths=(2, 2, 18, 2))


@register_model
def l2vit_base(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """88.6 M parameters, 15.9 GFLOPs, 84.4 % top-1; from ImageNet-22K 86.0 %."""
    return _create_l2vit("l2vit_base", pretrained, kwargs, depths=(2, 2, 18, 2), dims=(128, 256, 512, 1024))


@register_model
def l2vit_base_384(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """88.6 M parameters, 47.5 GFLOPs at 384 pixels, from ImageNet-22K 87.0 % top-1; windows of 12."""
    sizes = {"depths": (2, 2, 18, 2), "dims": (128, 256, 512, 1024), "window_size": 12}
    return _create_l2vit("l2vit_base_384", pretrained, kwargs, **sizes)
