"""MaxViT on our operators: a convolution, then attention among neighbours, then on a grid that spans the map.

Paper    Tu et al., MaxViT: Multi-Axis Vision Transformer, 2022, https://arxiv.org/abs/2204.01697
Weights  timm's files on the Hugging Face hub: `tf` ones converted from https://github.com/google-research/maxvit
         (Apache-2.0), `rw` ones trained by Ross Wightman. The authors' TensorFlow checkpoints do not load
Layout   timm's network and state-dict keys; maps at strides 2 (the stem's), 4, 8, 16, 32
Sizes    any H, W from 32 up, odd ones too. Windows stay as built, a side is the image's over 32: a map that they do not
         fill gets tokens at the bottom and right whose q, k, v are the bias, and which are keys like any other
Options  `depths`, `img_size` (decides the windows), and all others of timm's `MaxxVit`
Kernel   window_attention

There are three kinds of position bias: `tf` learns a table read at key minus query; `rw` one read at query minus key;
`rmlp` computes one from log coordinates, by an MLP with dropout. All reach the operator as one form of table.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import RelPosBias, RelPosBiasTf, RelPosMlp, resize_rel_pos_bias_table
from timm.models import maxxvit, register_model, register_notrace_module
from timm.models.maxxvit import MaxxVitCfg
from torch import Tensor, nn

from ..kernels.window_attention import window_attention
from . import _mbconv_fused  # noqa: F401  marks what timm's convolutions become
from ._checkpoint import find_weights
from ._fused import FusedNetwork, build_fused, check_pooling, fused_cfgs, fused_form_of, prepare_network, swap_modules
from ._keys import convert_keys
from ._layers import bias_of, quicken
from ._pyramid import drop_path_ramp

__all__ = ["FusedMaxxVit"]


class FusedRelPosBiasTf(RelPosBiasTf):
    """A learned table, read at key minus query."""

    def table(self) -> Tensor:
        """(heads, 2 wh - 1, 2 ww - 1), read at key minus query."""
        return self.relative_position_bias_table


class FusedRelPosBias(RelPosBias):
    """A learned table, read at query minus key."""

    def table(self) -> Tensor:
        """(heads, 2 wh - 1, 2 ww - 1), read at key minus query."""
        table = self.relative_position_bias_table.unflatten(0, [2 * self.window_size[0] - 1, -1])
        return table.permute(2, 0, 1).flip(1, 2)


class FusedRelPosMlp(RelPosMlp):
    """A table computed from log coordinates, read at query minus key."""

    def table(self) -> Tensor:
        """(heads, 2 wh - 1, 2 ww - 1), read at key minus query."""
        return self.mlp(self.rel_coords_log).permute(2, 0, 1).flip(1, 2)


_POSITIONS = {RelPosBiasTf: FusedRelPosBiasTf, RelPosBias: FusedRelPosBias, RelPosMlp: FusedRelPosMlp}


@register_notrace_module
class FusedAttentionCl(maxxvit.AttentionCl):
    """Attention inside each window of a map: (B, H, W, C) -> (B, H, W, C_out)."""

    def forward(self, x: Tensor, window: tuple[int, int], partition: str) -> Tensor:
        three = [self.num_heads, 3, self.dim_head] if self.head_first else [3, self.num_heads, self.dim_head]
        among = 1 if self.head_first else 0
        qkv = self.qkv(x)
        q, k, v = qkv.unflatten(3, three).unbind(3 + among)
        bias = self.qkv(x.new_zeros([1, x.shape[3]]))[0] if torch.jit.is_scripting() else bias_of(self.qkv, x)
        pad = None if bias is None else bias.to(qkv.dtype).unflatten(0, three).transpose(0, among)
        table = None if self.rel_pos is None else self.rel_pos.table()
        out = window_attention(q, k, v, window, partition, self.scale, table, pad)
        return self.proj_drop(self.proj(out))


def _prepare_block(block: nn.Module, *attentions: nn.Module) -> bool:
    """Whether the operator can do what the block's attentions do; then gives its parts their new classes."""
    if not all(_is_known(attention) for attention in attentions):
        return False
    for attention in attentions:
        if attention.rel_pos is not None:
            attention.rel_pos.__class__ = _POSITIONS[type(attention.rel_pos)]
        attention.__class__ = FusedAttentionCl
    quicken(block)
    return True


def _is_known(attention: nn.Module) -> bool:
    if type(attention) is not maxxvit.AttentionCl or attention.attn_drop.p:
        return False
    rel_pos = attention.rel_pos
    return rel_pos is None or (type(rel_pos) in _POSITIONS and getattr(rel_pos, "mode", "cr") != "swin")


@fused_form_of(maxxvit.PartitionAttentionCl, lambda block: _prepare_block(block, block.attn), attends=True)
class FusedPartitionAttentionCl(maxxvit.PartitionAttentionCl):
    """Attention inside windows or on the grid, then an MLP: (B, H, W, C) -> (B, H, W, C)."""

    def _partition_attn(self, x: Tensor) -> Tensor:
        return self.attn(x, self.partition_size, "block" if self.partition_block else "grid")


@fused_form_of(
    maxxvit.ParallelPartitionAttention,
    lambda block: _prepare_block(block, block.attn_block, block.attn_grid),
    attends=True,
)
class FusedParallelPartitionAttention(maxxvit.ParallelPartitionAttention):
    """Attention inside windows and on the grid, half of the channels each, then an MLP: on (B, H, W, C)."""

    def _partition_attn(self, x: Tensor) -> Tensor:
        window = self.partition_size
        return torch.cat([self.attn_block(x, window, "block"), self.attn_grid(x, window, "grid")], -1)


@fused_form_of(maxxvit.MaxxVit, prepare_network)
class FusedMaxxVit(FusedNetwork, maxxvit.MaxxVit):
    """A stem and four stages of blocks, all in windows of `img_size` over 32; the arguments of timm's `MaxxVit`."""

    first_stage = 1

    def __init__(self, cfg: MaxxVitCfg, global_pool: str = "avg", **kwargs: Any) -> None:
        rate = kwargs.get("drop_path_rate", 0.0)
        drop_path_ramp(rate, kwargs.get("depths", cfg.depths), len(cfg.embed_dim))  # for its errors
        normed = bool(kwargs.get("head_hidden_size", cfg.head_hidden_size))
        check_pooling(kwargs.get("num_classes", 1000), global_pool, classifies_maps=normed, widens=not normed)
        super().__init__(cfg, global_pool=global_pool, **kwargs)
        swap_modules(self)

    def _embed(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: FusedMaxxVit) -> dict[str, Tensor]:
    """timm's file as a state dict of `model`; tables of position bias are resized to the model's windows.

    Raises:
        UserError: the file is of another architecture or variant; names the keys at fault.
    """
    own = model.state_dict()
    weights = {}
    for key, value in find_weights(checkpoint).items():
        mine = own.get(key.removeprefix("backbone."))
        if mine is not None and value.shape != mine.shape:
            value = _fitted(key.removeprefix("backbone."), value, mine, model)
        weights[key] = value
    return convert_keys(weights, model, lambda key: key)


def _fitted(key: str, value: Tensor, mine: Tensor, model: nn.Module) -> Tensor:
    """A table at the size of the model's windows, a 1 x 1 convolution as a linear layer or back; others as they are."""
    owner, _, part = key.rpartition(".")
    if part == "relative_position_bias_table" and value.dim() == mine.dim():
        window = model.get_submodule(owner).window_size
        return resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=mine.shape)
    if part == "weight" and value.numel() == mine.numel() and {value.dim(), mine.dim()} == {2, 4}:
        return value.reshape(mine.shape)
    return value


def _facts(name: str, tag: str) -> dict[str, Any]:
    code = "google-research/maxvit" if "_tf_" in name else "huggingface/pytorch-image-models"
    return {
        "paper_ids": "arXiv:2204.01697",
        "paper_name": "MaxViT: Multi-Axis Vision Transformer",
        "origin_url": f"https://github.com/{code}",
    }


default_cfgs = fused_cfgs(maxxvit.default_cfgs, "maxvit_", 32, _facts)


def _create_maxvit(name: str, pretrained: bool, kwargs: dict[str, Any]) -> FusedMaxxVit:
    timms = name.removesuffix("_fused")
    family, _, side = timms.rpartition("_")
    cfg = maxxvit.model_cfgs[timms if timms in maxxvit.model_cfgs else family]
    options = {"model_cfg": cfg, "img_size": int(side)} | kwargs
    return build_fused(FusedMaxxVit, name, pretrained, checkpoint_filter_fn, levels=5, **options)


@register_model
def maxvit_pico_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """7.5 M parameters; no public weights."""
    return _create_maxvit("maxvit_pico_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_nano_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """15.5 M parameters, 82.9 % top-1."""
    return _create_maxvit("maxvit_nano_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_tiny_rw_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """29.1 M parameters, 83.5 % top-1."""
    return _create_maxvit("maxvit_tiny_rw_224_fused", pretrained, kwargs)


@register_model
def maxvit_tiny_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """29.1 M parameters; no public weights."""
    return _create_maxvit("maxvit_tiny_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_tiny_pm_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """30.1 M parameters; no public weights."""
    return _create_maxvit("maxvit_tiny_pm_256_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_pico_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """7.5 M parameters, 80.5 % top-1."""
    return _create_maxvit("maxvit_rmlp_pico_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_nano_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """15.5 M parameters, 83.0 % top-1."""
    return _create_maxvit("maxvit_rmlp_nano_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_tiny_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """29.1 M parameters, 84.2 % top-1."""
    return _create_maxvit("maxvit_rmlp_tiny_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_small_rw_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """64.9 M parameters, 84.5 % top-1."""
    return _create_maxvit("maxvit_rmlp_small_rw_224_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_small_rw_256_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """64.9 M parameters; no public weights."""
    return _create_maxvit("maxvit_rmlp_small_rw_256_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_base_rw_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """116.1 M parameters."""
    return _create_maxvit("maxvit_rmlp_base_rw_224_fused", pretrained, kwargs)


@register_model
def maxvit_rmlp_base_rw_384_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """116.1 M parameters."""
    return _create_maxvit("maxvit_rmlp_base_rw_384_fused", pretrained, kwargs)


@register_model
def maxvit_tiny_tf_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """30.9 M parameters, 5.6 GFLOPs, 83.62 % top-1."""
    return _create_maxvit("maxvit_tiny_tf_224_fused", pretrained, kwargs)


@register_model
def maxvit_tiny_tf_384_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """31.0 M parameters, 17.7 GFLOPs, 85.24 % top-1."""
    return _create_maxvit("maxvit_tiny_tf_384_fused", pretrained, kwargs)


@register_model
def maxvit_tiny_tf_512_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """31.0 M parameters, 33.7 GFLOPs, 85.72 % top-1."""
    return _create_maxvit("maxvit_tiny_tf_512_fused", pretrained, kwargs)


@register_model
def maxvit_small_tf_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """68.9 M parameters, 11.7 GFLOPs, 84.45 % top-1."""
    return _create_maxvit("maxvit_small_tf_224_fused", pretrained, kwargs)


@register_model
def maxvit_small_tf_384_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """69.0 M parameters, 36.1 GFLOPs, 85.74 % top-1."""
    return _create_maxvit("maxvit_small_tf_384_fused", pretrained, kwargs)


@register_model
def maxvit_small_tf_512_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """69.1 M parameters, 67.6 GFLOPs, 86.19 % top-1."""
    return _create_maxvit("maxvit_small_tf_512_fused", pretrained, kwargs)


@register_model
def maxvit_base_tf_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """119.5 M parameters, 24.2 GFLOPs, 84.95 % top-1."""
    return _create_maxvit("maxvit_base_tf_224_fused", pretrained, kwargs)


@register_model
def maxvit_base_tf_384_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """119.7 M parameters, 74.2 GFLOPs, 86.34 % top-1."""
    return _create_maxvit("maxvit_base_tf_384_fused", pretrained, kwargs)


@register_model
def maxvit_base_tf_512_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """119.9 M parameters, 138.5 GFLOPs, 86.66 % top-1."""
    return _create_maxvit("maxvit_base_tf_512_fused", pretrained, kwargs)


@register_model
def maxvit_large_tf_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """211.8 M parameters, 43.9 GFLOPs, 85.17 % top-1."""
    return _create_maxvit("maxvit_large_tf_224_fused", pretrained, kwargs)


@register_model
def maxvit_large_tf_384_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """212.0 M parameters, 133.1 GFLOPs, 86.40 % top-1."""
    return _create_maxvit("maxvit_large_tf_384_fused", pretrained, kwargs)


@register_model
def maxvit_large_tf_512_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """212.3 M parameters, 245.4 GFLOPs, 86.70 % top-1."""
    return _create_maxvit("maxvit_large_tf_512_fused", pretrained, kwargs)


@register_model
def maxvit_xlarge_tf_224_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """507.0 M parameters, 97.8 GFLOPs; with the 21,843 classes of ImageNet-21K."""
    return _create_maxvit("maxvit_xlarge_tf_224_fused", pretrained, kwargs)


@register_model
def maxvit_xlarge_tf_384_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """475.3 M parameters, 293.7 GFLOPs."""
    return _create_maxvit("maxvit_xlarge_tf_384_fused", pretrained, kwargs)


@register_model
def maxvit_xlarge_tf_512_fused(pretrained: bool = False, **kwargs: Any) -> FusedMaxxVit:
    """475.8 M parameters, 535.2 GFLOPs."""
    return _create_maxvit("maxvit_xlarge_tf_512_fused", pretrained, kwargs)
