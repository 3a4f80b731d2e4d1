"""VAN: a convolutional backbone whose attention is one large depthwise kernel, taken apart into three small ones.

Paper    Guo et al., Visual Attention Network, 2022, https://arxiv.org/abs/2202.09741
Weights  https://github.com/Visual-Attention-Network/VAN-Classification (Apache-2.0), renamed by `checkpoint_filter_fn`
Layout   NCHW throughout; maps at strides 4, 8, 16, 32, each after its stage's LayerNorm
Sizes    any H, W from 32 up, odd ones too; no position encoding, nothing fixed when the model is built
Options  `depths`, and `norm_eps`: 1e-6 as the classifiers were trained, 1e-5 as the authors' detectors were
Kernel   depthwise_conv, in the gate (with and without gaps) and in the MLP
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ._errors import UserError
from ._keys import convert_keys, rename_numbered
from ._layers import DepthwiseConv
from ._pyramid import AT_384, Pyramid, Stage, build, drop_path_ramp, init_conv_fan_out_, weights_cfg

__all__ = ["VAN"]


class LargeKernelGate(nn.Module):
    """Weigh each pixel by its 23 x 23 surroundings, one channel at a time: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.near = DepthwiseConv(dim, 5, **dd)
        self.far = DepthwiseConv(dim, 7, dilation=3, **dd)  # spans 19, on top of near's 5
        self.mix = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(self.far(self.near(x)))


class Mixer(nn.Module):
    """The gate between two projections: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(dim, dim, 1, **dd)
        self.act = nn.GELU()
        self.gate = LargeKernelGate(dim, **dd)
        self.proj_out = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.gate(self.act(self.proj_in(x))))


class DepthwiseMlp(nn.Module):
    """Two 1 x 1 convolutions with a depthwise 3 x 3 one before the activation: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1, **dd)
        self.dwconv = DepthwiseConv(hidden, 3, activation="gelu", **dd)
        self.fc2 = nn.Conv2d(hidden, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dwconv(self.fc1(x)))


class Block(nn.Module):
    """Gated mixing of pixels, then of channels, each scaled and added: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.mixer = Mixer(dim, **dd)
        self.scale1 = nn.Parameter(torch.full((dim,), 0.01, **dd))
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = DepthwiseMlp(dim, dim * mlp_ratio, **dd)
        self.scale2 = nn.Parameter(torch.full((dim,), 0.01, **dd))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = y + self.mixer(y)  # this inner skip starts behind the norm, and the published weights need it there
        x = x + self.drop_path(self.scale1[:, None, None] * y)
        return x + self.drop_path(self.scale2[:, None, None] * self.mlp(self.norm2(x)))


class VAN(Pyramid):
    """Four stages, each a strided convolution, `depths[i]` blocks of `dims[i]` channels, and a LayerNorm.

    Args:
        depths: blocks a stage.
        dims: channels a stage.
        mlp_ratios: hidden channels of a block's MLP over its channels, by stage.
        norm_eps: of the LayerNorms that end the stages.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
        others: see `Pyramid`.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 3, 5, 2),
        dims: tuple[int, ...] = (32, 64, 160, 256),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        if not isinstance(norm_eps, Real) or not 0 < norm_eps < 1:
            raise UserError(f"norm_eps is {norm_eps!r}; it takes a number above 0 and below 1")
        rates = drop_path_ramp(drop_path_rate, depths)
        stages = []
        for i, (chans, dim) in enumerate(pairwise((in_chans, *dims))):
            kernel, stride = (3, 2) if i else (7, 4)
            conv = nn.Conv2d(chans, dim, kernel, stride, padding=kernel // 2, **dd)
            downsample = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(dim, **dd)))
            blocks = [Block(dim, mlp_ratios[i], rate, **dd) for rate in rates[i]]
            stages.append(Stage(downsample, blocks, LayerNorm2d(dim, eps=norm_eps, **dd)))
        super().__init__(
            stages,
            dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init_conv_fan_out_(module)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: VAN) -> dict[str, Tensor]:
    """The authors' checkpoint, classifier or detector, or one of ours, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    return convert_keys(checkpoint, model, _rename)


_BLOCK_PARTS = {
    ".attn.proj_1.": ".mixer.proj_in.",
    ".attn.spatial_gating_unit.conv0.": ".mixer.gate.near.",
    ".attn.spatial_gating_unit.conv_spatial.": ".mixer.gate.far.",
    ".attn.spatial_gating_unit.conv1.": ".mixer.gate.mix.",
    ".attn.proj_2.": ".mixer.proj_out.",
    ".mlp.dwconv.dwconv.": ".mlp.dwconv.",
    ".layer_scale_": ".scale",
    ".downsample.proj.": ".downsample.conv.",
}


def _rename(key: str) -> str:
    """`block1.0.attn.proj_1.weight` -> `stages.0.blocks.0.mixer.proj_in.weight`; keys of ours stay as they are."""
    return rename_numbered(key, _BLOCK_PARTS)


def _cfg(**entries: Any) -> dict[str, Any]:
    return weights_cfg(
        license="apache-2.0",
        paper_ids="arXiv:2202.09741",
        paper_name="Visual Attention Network",
        origin_url="https://github.com/Visual-Attention-Network/VAN-Classification",
        **entries,
    )


def _in1k(file: str = "") -> dict[str, Any]:
    return _cfg(url=file and f"https://huggingface.co/Visual-Attention-Network/{file}", crop_pct=0.9)


# the authors give a folder, not direct links, for what was trained on ImageNet-22K, and nothing for van_b4 on 1K
_22K = {
    "in22k": _cfg(num_classes=21841),
    "in22k_ft_in1k": _cfg(),
    "in22k_ft_in1k_384": _cfg(**AT_384),
}

default_cfgs = generate_default_cfgs(
    {
        "van_b0.in1k": _in1k("VAN-Tiny-original/resolve/main/van_tiny_754.pth.tar"),
        "van_b1.in1k": _in1k("VAN-Small-original/resolve/main/van_small_811.pth.tar"),
        "van_b2.in1k": _in1k("VAN-Base-original/resolve/main/van_base_828.pth.tar"),
        "van_b3.in1k": _in1k("VAN-Large-original/resolve/main/van_large_839.pth.tar"),
        "van_b4.in1k*": _in1k(),
        **{f"van_b4.{tag}": cfg for tag, cfg in _22K.items()},
        "van_b5.in22k_ft_in1k*": _22K["in22k_ft_in1k"],
        **{f"van_b5.{tag}": _22K[tag] for tag in ("in22k", "in22k_ft_in1k_384")},
        "van_b6.in22k_ft_in1k*": _22K["in22k_ft_in1k"],
        **{f"van_b6.{tag}": _22K[tag] for tag in ("in22k", "in22k_ft_in1k_384")},
    }
)


def _create_van(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> VAN:
    return build(VAN, name, pretrained, checkpoint_filter_fn, **(sizes | kwargs))


@register_model
def van_b0(pretrained: bool = False, **kwargs: Any) -> VAN:
    """4.1 M parameters, 0.9 GFLOPs, 75.4 % top-1."""
    return _create_van("van_b0", pretrained, kwargs, depths=(3, 3, 5, 2), dims=(32, 64, 160, 256))


@register_model
def van_b1(pretrained: bool = False, **kwargs: Any) -> VAN:
    """13.9 M parameters, 2.5 GFLOPs, 81.1 % top-1."""
    return _create_van("van_b1", pretrained, kwargs, depths=(2, 2, 4, 2), dims=(64, 128, 320, 512))


@register_model
def van_b2(pretrained: bool = False, **kwargs: Any) -> VAN:
    """26.6 M parameters, 5.0 GFLOPs, 82.8 % top-1."""
    return _create_van("van_b2", pretrained, kwargs, depths=(3, 3, 12, 3), dims=(64, 128, 320, 512))


@register_model
def van_b3(pretrained: bool = False, **kwargs: Any) -> VAN:
    """44.8 M parameters, 9.0 GFLOPs, 83.9 % top-1."""
    return _create_van("van_b3", pretrained, kwargs, depths=(3, 5, 27, 3), dims=(64, 128, 320, 512))


@register_model
def van_b4(pretrained: bool = False, **kwargs: Any) -> VAN:
    """60.3 M parameters, 12.2 GFLOPs, 84.2 % top-1; from ImageNet-22K 85.7 %, at 384 pixels 86.6 %."""
    return _create_van("van_b4", pretrained, kwargs, depths=(3, 6, 40, 3), dims=(64, 128, 320, 512))


@register_model
def van_b5(pretrained: bool = False, **kwargs: Any) -> VAN:
    """90.0 M parameters, 17.2 GFLOPs; from ImageNet-22K 86.3 % top-1, at 384 pixels 87.0 %."""
    return _create_van("van_b5", pretrained, kwargs, depths=(3, 3, 24, 3), dims=(96, 192, 480, 768))


@register_model
def van_b6(pretrained: bool = False, **kwargs: Any) -> VAN:
    """199.8 M parameters, 38.9 GFLOPs; from ImageNet-22K 86.9 % top-1, at 384 pixels 87.8 %."""
    return _create_van("van_b6", pretrained, kwargs, depths=(6, 6, 90, 6), dims=(96, 192, 384, 768))
