"""SHViT on our operators: attention of one head, on a part of the channels, over the whole map.

Paper    Yun and Ro, SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design, 2024,
         https://arxiv.org/abs/2401.16456
Weights  timm's copies on the Hugging Face hub; files of https://github.com/ysj9909/SHViT (MIT) load too, renamed by
         `checkpoint_filter_fn`
Layout   timm's network and state-dict keys; maps at strides 16, 32, 64, and none finer
Sizes    any H, W from 32 up, odd ones too; no position encoding, nothing fixed when the model is built
Options  `depths`, `drop_path_rate`, which timm's model lacks, and all others of timm's `SHViT`
Kernel   global_attention
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath
from timm.models import checkpoint_seq, register_model, register_notrace_module, shvit
from torch import Tensor, nn

from ..kernels.global_attention import global_attention
from ._fused import FusedNetwork, build_fused, check_pooling, fused_cfgs, fused_form_of, prepare_network, swap_modules
from ._keys import convert_keys
from ._pyramid import drop_path_ramp

__all__ = ["FusedSHViT"]


@register_notrace_module
@fused_form_of(shvit.SHSA, attends=True)
class FusedSHSA(shvit.SHSA):
    """Attention among all pixels on the first `pdim` channels: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        attending, resting = x.split([self.pdim, self.dim - self.pdim], 1)
        qkv = self.qkv(self.pre_norm(attending))
        tokens = qkv.flatten(2).transpose(1, 2).unsqueeze(2)  # (B, N, 1, 2 * qk_dim + pdim)
        q, k, v = tokens.split([self.qk_dim, self.qk_dim, self.pdim], 3)
        mixed = global_attention(q, k, v, self.scale).transpose(1, 2)
        mixed = mixed.reshape(batch, self.pdim, height, width)
        return self.proj(torch.cat([mixed, resting], 1))


class DropResidual(shvit.Residual):
    """x + drop_path(m(x)): the residual of timm's model, that training skips for some images."""

    if TYPE_CHECKING:
        drop_path: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.m(x))


@fused_form_of(shvit.StageBlock)
class FusedStageBlock(shvit.StageBlock):
    """timm's stage, whose checkpointing covers what shrinks the map too: (B, C, H, W) -> (B, C', H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            if isinstance(self.downsample, nn.Sequential):
                x = checkpoint_seq(self.downsample, x)
            return checkpoint_seq(self.blocks, x)
        return self.blocks(self.downsample(x))


@fused_form_of(shvit.SHViT, prepare_network)
class FusedSHViT(FusedNetwork, shvit.SHViT):
    """A stem of four convolutions and three stages of blocks; the arguments are those of timm's `SHViT`, and two more.

    Args:
        depths: blocks a stage; timm's name for it, `depth`, is taken too.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (1, 2, 3),
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        **kwargs: Any,
    ) -> None:
        depths = kwargs.pop("depth", depths)
        rates = drop_path_ramp(drop_path_rate, depths, stages=3)
        check_pooling(kwargs.get("num_classes", 1000), global_pool, classifies_maps=False, widens=False)
        super().__init__(depth=tuple(depths), global_pool=global_pool, **kwargs)
        self.grad_checkpointing = False
        swap_modules(self)
        for stage, of_stage in zip(self.stages, rates, strict=True):
            for block, rate in zip(stage.blocks, of_stage, strict=True):
                _drop_residuals(block, rate)

    def _embed(self, x: Tensor) -> Tensor:
        return self.patch_embed(x)

    @torch.jit.ignore()
    def get_classifier(self) -> nn.Module:
        """The linear classifier; an Identity where there is none."""
        return self.head.l if isinstance(self.head, shvit.NormLinear) else self.head


def _drop_residuals(block: shvit.BasicBlock, rate: float) -> None:
    for part in block.children():
        if rate and isinstance(part, shvit.Residual):
            part.drop_path = DropPath(rate)
            part.__class__ = DropResidual


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: FusedSHViT) -> dict[str, Tensor]:
    """timm's file or the authors' (classifier or detector) as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    return convert_keys(checkpoint, model, _rename)


def _rename(key: str) -> str:
    """`blocks2.3.conv.m.c.weight` -> `stages.1.blocks.0.conv.m.c.weight`; timm's keys stay as they are.

    The authors count the three parts that shrink the map, of two, one and two modules, as the first blocks of a stage.
    """
    found = re.match(r"blocks(\d)\.(\d+)\.", key)
    if found is None:
        return key
    stage, block, rest = int(found[1]) - 1, int(found[2]), key[found.end() :]
    if stage == 0:
        return f"stages.0.blocks.{block}.{rest}"
    if block > 2:
        return f"stages.{stage}.blocks.{block - 3}.{rest}"
    if block == 1:
        return f"stages.{stage}.downsample.2.{rest}"
    part, _, rest = rest.partition(".")
    return f"stages.{stage}.downsample.{int(part) + (3 if block == 2 else 0)}.{rest}"


def _facts(name: str, tag: str) -> dict[str, Any]:
    return {}  # timm's are complete


default_cfgs = fused_cfgs(shvit.default_cfgs, "shvit_", 64, _facts)


def _create_shvit(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> FusedSHViT:
    sizes["types"] = ("i", "s", "s")
    return build_fused(FusedSHViT, name, pretrained, checkpoint_filter_fn, levels=3, **(sizes | kwargs))


@register_model
def shvit_s1_fused(pretrained: bool = False, **kwargs: Any) -> FusedSHViT:
    """6.3 M parameters, 0.2 GFLOPs, 72.8 % top-1."""
    sizes = dict(embed_dim=(128, 224, 320), depths=(2, 4, 5), partial_dim=(32, 48, 68))
    return _create_shvit("shvit_s1_fused", pretrained, kwargs, **sizes)


@register_model
def shvit_s2_fused(pretrained: bool = False, **kwargs: Any) -> FusedSHViT:
    """11.5 M parameters, 0.4 GFLOPs, 75.2 % top-1."""
    sizes = dict(embed_dim=(128, 308, 448), depths=(2, 4, 5), partial_dim=(32, 66, 96))
    return _create_shvit("shvit_s2_fused", pretrained, kwargs, **sizes)


@register_model
def shvit_s3_fused(pretrained: bool = False, **kwargs: Any) -> FusedSHViT:
    """14.2 M parameters, 0.6 GFLOPs, 77.4 % top-1."""
    sizes = dict(embed_dim=(192, 352, 448), depths=(3, 5, 5), partial_dim=(48, 75, 96))
    return _create_shvit("shvit_s3_fused", pretrained, kwargs, **sizes)


@register_model
def shvit_s4_fused(pretrained: bool = False, **kwargs: Any) -> FusedSHViT:
    """16.6 M parameters, 1.0 GFLOPs, 79.4 % top-1 at 256 pixels."""
    sizes = dict(embed_dim=(224, 336, 448), depths=(4, 7, 6), partial_dim=(48, 72, 96))
    return _create_shvit("shvit_s4_fused", pretrained, kwargs, **sizes)
