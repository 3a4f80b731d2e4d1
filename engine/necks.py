"""Necks for backbones that give fewer, coarser or other maps than detectors expect.

PyramidNeck    three stages at strides 16, 32 and 64 (SHViT), or any number: a feature pyramid that also grows finer
               levels from its finest one. Its keys are those of the SHViT authors' detector files
SimplePyramid  one map (a plain ViT): levels at a quarter, half, once and twice its stride, as ViTDet makes them
               (Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, 2022)
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones._errors import UserError

_SOURCES = (False, "on_input", "on_lateral", "on_output")
_INIT = [
    {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"},
    {"type": "Kaiming", "layer": "ConvTranspose2d"},
]


def _named(conv: nn.Module, norm_cfg: dict[str, Any] | None = None) -> nn.Sequential:
    """A convolution, and a norm where one is asked for, under mm's keys: `conv.weight`, `conv.bias`, `gn.weight`."""
    parts = OrderedDict(conv=conv)
    if norm_cfg:
        from mmcv.cnn import build_norm_layer

        name, norm = build_norm_layer(norm_cfg, conv.out_channels)
        conv.register_parameter("bias", None)
        parts[name] = norm
    return nn.Sequential(parts)


@MODELS.register_module()
class PyramidNeck(BaseModule):
    """Feature pyramid with finer levels: tuple of maps -> `num_outs` maps (B, out_channels, H, W), finest first.

    1x1 convolutions bring all maps to one width; each is summed with the next coarser result, enlarged to its own size
    by nearest neighbour. From the finest sum, transposed convolutions of stride 2 grow `extra_levels` finer maps, one
    from the other. Every level then passes a 3x3 convolution. Coarser levels follow, by max pooling with stride 2 or by
    convolutions.

    `extra_trans_convs` are numbered in the order they run, away from the backbone, but `extra_fpn_convs` in the order
    of the result: number 0 belongs to the finest level. The authors' weights need it so.

    Args:
        in_channels: of the backbone's maps, finest first.
        out_channels: of every level.
        num_outs: levels in all.
        extra_levels: how many of them are finer than the backbone's finest map; the authors' `num_extra_trans_convs`.
        add_extra_convs: where convolutions of stride 2 for coarser levels start from: "on_input" (the backbone's last
            map), "on_lateral" (it, at the neck's width) or "on_output" (the last level); False takes max pooling.
        norm_cfg: a norm behind each convolution but the transposed, as mm writes it, `dict(type="GN", num_groups=8)`.
        relu_before_extra_convs: put a ReLU between the convolutions for coarser levels.
        init_cfg: see mmengine's `BaseModule`; None initialises as mm's feature pyramid.

    Raises:
        UserError: an argument, or the maps that come in, are not what they should be.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        extra_levels: int = 0,
        add_extra_convs: bool | str = False,
        norm_cfg: dict[str, Any] | None = None,
        relu_before_extra_convs: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg or _INIT)
        least = len(in_channels) + max(extra_levels, 0)
        if not in_channels or extra_levels < 0 or num_outs < least:
            raise UserError(
                f"num_outs is {num_outs}, extra_levels {extra_levels} and in_channels {list(in_channels)}; PyramidNeck "
                f"takes one map or more, no negative number, and num_outs={least} or more with these"
            )
        if add_extra_convs not in _SOURCES:
            taken = ", ".join(map(repr, _SOURCES))
            raise UserError(f"add_extra_convs is {add_extra_convs!r}; PyramidNeck takes {taken}")
        self.in_channels = list(in_channels)
        self.coarser = num_outs - len(in_channels) - extra_levels
        self.add_extra_convs, self.relu_before_extra_convs = add_extra_convs, relu_before_extra_convs
        width = out_channels
        first = in_channels[-1] if add_extra_convs == "on_input" else width
        coarser = [first, *[width] * (self.coarser - 1)][: self.coarser] if add_extra_convs else []
        near = [nn.Conv2d(width, width, 3, padding=1) for _ in in_channels]
        far = [nn.Conv2d(channels, width, 3, 2, 1) for channels in coarser]
        self.lateral_convs = nn.ModuleList(_named(nn.Conv2d(channels, width, 1), norm_cfg) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(_named(conv, norm_cfg) for conv in (*near, *far))
        self.extra_trans_convs = nn.ModuleList(
            _named(nn.ConvTranspose2d(width, width, 2, 2)) for _ in range(extra_levels)
        )
        self.extra_fpn_convs = nn.ModuleList(
            _named(nn.Conv2d(width, width, 3, padding=1), norm_cfg) for _ in range(extra_levels)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, in_channels[i], H_i, W_i), finest first -> levels (B, out_channels, H, W), finest first."""
        _check_maps(inputs, self.in_channels, "PyramidNeck")
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], laterals[i].shape[2:], mode="nearest")
        grown = [laterals[0]]
        for conv in self.extra_trans_convs:
            grown.append(conv(grown[-1]))
        finer = [conv(x) for conv, x in zip(self.extra_fpn_convs, grown[:0:-1], strict=True)]
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        x = {"on_input": inputs[-1], "on_lateral": laterals[-1]}.get(str(self.add_extra_convs), outs[-1])
        for i in range(self.coarser):
            x = F.relu(x) if i and self.add_extra_convs and self.relu_before_extra_convs else x
            x = self.fpn_convs[len(laterals) + i](x) if self.add_extra_convs else F.max_pool2d(x, 1, 2)
            outs.append(x)
        return (*finer, *outs)


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """A pyramid from one map of stride s: levels at s/4, s/2, s, 2s, then coarser by max pooling, finest first.

    `start_level` leaves out the finest.

    Args:
        in_channels: of the map; a list of one number is taken too.
        out_channels: of every level.
        num_outs: levels in all.
        start_level: how many are left out, 0 to 3: 1 begins at s/2, as heads from stride 8 on need it.
        init_cfg: see mmengine's `BaseModule`; None initialises as mm's feature pyramid.

    Raises:
        UserError: an argument, or what comes in, is not what it should be.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int = 256,
        num_outs: int = 4,
        start_level: int = 0,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg or _INIT)
        given = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if len(given) != 1 or given[0] % 4:
            raise UserError(f"in_channels is {in_channels!r}; SimplePyramid takes one map of a multiple of 4 channels")
        if start_level not in range(4) or num_outs < 4 - start_level:
            raise UserError(
                f"num_outs is {num_outs} and start_level {start_level}; SimplePyramid gives 4 levels or more, of which "
                "the first start_level (0 to 3) are left out"
            )
        self.in_channels, self.num_outs = given, num_outs
        dims = [given[0] // 2**i for i in range(3)]
        up = [nn.ConvTranspose2d(before, here, 2, 2) for before, here in pairwise(dims)]
        half = nn.ConvTranspose2d(dims[0], dims[1], 2, 2)
        scales = (
            nn.Sequential(up[0], LayerNorm2d(dims[1]), nn.GELU(), up[1]),
            half,
            nn.Identity(),
            nn.MaxPool2d(2, 2, ceil_mode=True),
        )
        self.scales = nn.ModuleList(scales[start_level:])
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels in (dims[2], dims[1], dims[0], dims[0])[start_level:]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map (B, in_channels, H, W) in a tuple -> levels (B, out_channels, 4H, 4W), (..., 2H, 2W) and so on.

        The first `start_level` of them are left out.
        """
        _check_maps(inputs, self.in_channels, "SimplePyramid")
        outs = [conv(scale(inputs[0])).contiguous() for scale, conv in zip(self.scales, self.convs, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, 2))
        return tuple(outs)


def _check_maps(maps: Sequence[Tensor], in_channels: list[int], name: str) -> None:
    found = [x.shape[1] for x in maps]
    if found != in_channels:
        raise UserError(
            f"{name} was built for maps of {in_channels} channels, and the backbone gives {len(found)} of {found}: "
            f"set neck.in_channels={found}, or the backbone's out_indices"
        )
