"""TransNeXt: each pixel looks at its neighbours sharply and at the whole map coarsely, in one softmax.

Paper    Shi, TransNeXt: Robust Foveal Visual Perception for Vision Transformers, CVPR 2024,
         https://arxiv.org/abs/2311.17132
Weights  https://github.com/DaiShiResearch/TransNeXt (Apache-2.0), renamed by `checkpoint_filter_fn`
Layout   (B, H, W, C) inside a stage; maps at strides 4, 8, 16, 32, each after its stage's LayerNorm
Sizes    any H, W from 32 up, odd ones too; nothing is fixed when the model is built. The position bias is computed for
         the size at hand, in the unit of the size trained at, `pretrain_size`
Options  `depths`; `position_bias`: "extrapolation", or "interpolation" of the bias of `bias_size` pixels squared, the
         default of the authors' detectors; `pretrain_size`; `fixed_pool_size`: side of every pooled map, with which
         attention to it is linear in the number of pixels
Kernel   neighborhood_pool_attention; global_attention in a last stage without pooling
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from timm.layers import LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional

from ..kernels._layout import is_compiled, is_eager, is_transformed
from ..kernels._precision import wide
from ..kernels.depthwise_conv import depthwise_conv
from ..kernels.global_attention import global_attention
from ..kernels.neighborhood_pool_attention import neighborhood_pool_attention, position_bias
from ._errors import UserError
from ._keys import convert_keys, rename_numbered
from ._layers import Block, is_plain
from ._position_bias import PositionBias
from ._pyramid import AT_384, Pyramid, TokenStage, build, drop_path_ramp, init_conv_fan_out_, weights_cfg

__all__ = ["TransNeXt"]

HEAD_DIM = 24
EPS = 1e-6  # of the LayerNorms in blocks and behind stages
_PIECE = 2**21  # hidden values of an MLP written out at once, where no backward pass wants them all
TEMPERATURE = math.log(math.exp(1 / 0.24) - 1)  # softplus takes it to 1 / 0.24


def _pooled_side(x: Tensor, side: int, ratio: int, fixed: int) -> int:
    """Pixels of one side after pooling; `x` tells whether `side` is a number."""
    if fixed > 0:
        return fixed
    if torch.jit.is_scripting():
        return max(1, side // ratio)
    as_number = is_eager(x) or torch.jit.is_tracing() or is_transformed() or is_compiled()
    return max(1, side // ratio) if as_number else torch.sym_max(1, side // ratio)


def _averages(side: int, bins: int, x: Tensor) -> Tensor:
    """Adaptive average pooling of one side, as a matrix (bins, side)."""
    place, key = torch.arange(side, device=x.device), torch.arange(bins, device=x.device).unsqueeze(1)
    inside = (place >= key * side // bins) & (place < ((key + 1) * side + bins - 1) // bins)
    return inside.to(x.dtype) / inside.sum(1, keepdim=True)


def _pool(x: Tensor, rows: int, columns: int) -> Tensor:
    """Adaptive average pooling: (B, H, W, C) -> (B, rows * columns, C)."""
    if torch.jit.is_scripting():
        return _pool_at_once(x, rows, columns)
    return _pool_at_once(x, rows, columns) if is_eager(x) else _pool_by_matrices(x, rows, columns)


def _pool_at_once(x: Tensor, rows: int, columns: int) -> Tensor:
    pooled = functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), [rows, columns])
    return pooled.permute(0, 2, 3, 1).flatten(1, 2)


def _pool_by_matrices(x: Tensor, rows: int, columns: int) -> Tensor:
    """The same for exports, which have no adaptive pooling where sizes are symbols."""
    batch, height, width, dim = x.shape
    x = x.transpose(1, 2).reshape(batch * width, height, dim)
    x = torch.bmm(_averages(height, rows, x).expand(batch * width, rows, height), x)
    x = x.reshape(batch, width, rows, dim).transpose(1, 2).reshape(batch * rows, width, dim)
    x = torch.bmm(_averages(width, columns, x).expand(batch * rows, columns, width), x)
    return x.reshape(batch, rows * columns, dim)


class Attention(nn.Module):
    """What both kinds of attention hold: how sharp each head looks, what it looks for, and where."""

    def __init__(self, dim: int, heads: int, bias: PositionBias, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.empty(heads, 1, 1, **dd))
        self.query_embedding = nn.Parameter(torch.empty(heads, 1, dim // heads, **dd))
        self.cpb = bias
        self.proj = nn.Linear(dim, dim, **dd)

    def init_tables(self) -> None:
        """Fill the parameters that are no layer's."""
        nn.init.constant_(self.temperature, TEMPERATURE)
        trunc_normal_(self.query_embedding, std=0.02)


@register_notrace_module
class FovealAttention(Attention):
    """Attention of each pixel to its nine neighbours and to the whole map, pooled: (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels.
        heads: heads.
        ratio: pixels a side that become one when pooled.
        fixed: side of the pooled map whatever the size; 0 for `ratio`.
        bias: the position bias of the pooled keys.
    """

    def __init__(self, dim: int, heads: int, ratio: int, fixed: int, bias: PositionBias, **dd: Any) -> None:
        super().__init__(dim, heads, bias, **dd)
        self.ratio = ratio
        self.fixed = fixed
        self.relative_pos_bias_local = nn.Parameter(torch.empty(heads, 9, **dd))
        self.learnable_tokens = nn.Parameter(torch.empty(heads, dim // heads, 9, **dd))
        self.learnable_bias = nn.Parameter(torch.empty(heads, 1, 9, **dd))
        self.q = nn.Linear(dim, dim, **dd)
        self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.sr = nn.Conv2d(dim, dim, 1, **dd)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)

    def init_tables(self) -> None:
        super().init_tables()
        trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        trunc_normal_(self.learnable_tokens, std=0.02)
        nn.init.zeros_(self.learnable_bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        heads, head_dim = self.heads, dim // self.heads
        if not torch.jit.is_scripting():
            self._check(x)
        rows = _pooled_side(x, height, self.ratio, self.fixed)
        columns = _pooled_side(x, width, self.ratio, self.fixed)
        pooled = self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        pooled = self.norm(_pool(self.act(pooled), rows, columns))
        q = self.q(x).reshape(batch, height, width, heads, head_dim)
        k, v = self.kv(x).reshape(batch, height, width, 2, heads, head_dim).unbind(3)
        pool_k, pool_v = self.kv(pooled).reshape(batch, rows * columns, 2, heads, head_dim).unbind(2)
        table, row_places, column_places = self.cpb(x, height, width, rows, columns)
        out = neighborhood_pool_attention(
            q,
            k,
            v,
            pool_k,
            pool_v,
            self.query_embedding,
            self.temperature,
            self.relative_pos_bias_local,
            self.learnable_tokens,
            self.learnable_bias,
            table,
            row_places,
            column_places,
        )
        return self.proj(out)

    @torch.jit.unused
    def _check(self, x: Tensor) -> None:
        if self.fixed and is_eager(x) and min(x.shape[1:3]) < self.fixed:
            raise UserError(
                f"fixed_pool_size is {self.fixed}, but the smallest map that is pooled has {x.shape[1]}x{x.shape[2]} "
                "pixels; it takes a side no longer than the map's"
            )


@register_notrace_module
class CosineAttention(Attention):
    """Attention of each pixel to every other: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, bias: PositionBias, **dd: Any) -> None:
        super().__init__(dim, heads, bias, **dd)
        self.qkv = nn.Linear(dim, 3 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.heads, dim // self.heads).unbind(2)
        unit_q, unit_k = functional.normalize(wide(q), dim=-1), functional.normalize(wide(k), dim=-1)
        length = torch.full((1,), height * width, dtype=torch.float32, device=x.device).log()
        scale = functional.softplus(self.temperature).squeeze(-1) * length  # (heads, 1)
        q = (unit_q + self.query_embedding.squeeze(1)) * scale
        table, rows, columns = self.cpb(x, height, width, height, width)
        bias = position_bias(table, rows, columns)
        out = global_attention(q.to(v.dtype), unit_k.to(v.dtype), v, scale=1.0, bias=bias)
        return self.proj(out).reshape(batch, height, width, dim)


@register_notrace_module
class ConvGLU(nn.Module):
    """A gated MLP whose gate sees 3 x 3 pixels: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1 = nn.Linear(dim, 2 * hidden, **dd)  # first half: the gate
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd)
        self.fc2 = nn.Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.fc2(self._gated(x, 0, self.hidden))
        if not is_plain(self.fc1, self.dwconv, self.fc2):
            return self._by_modules(x)
        if torch.is_grad_enabled() or not is_eager(x):
            return self.fc2(self._gated(x, 0, self.hidden))
        return self._in_pieces(x)

    @torch.jit.unused
    def _by_modules(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).permute(0, 3, 1, 2).chunk(2, 1)
        return self.fc2((functional.gelu(self.dwconv(gate)) * value).permute(0, 2, 3, 1))

    @torch.jit.unused
    def _in_pieces(self, x: Tensor) -> Tensor:
        """So many hidden channels at a time that they stay in the cache."""
        step = min(self.hidden, max(64, _PIECE // max(1, x[..., 0].numel()) // 16 * 16))
        out = wide(functional.linear(self._gated(x, 0, step), self.fc2.weight[:, :step], self.fc2.bias))
        for start in range(step, self.hidden, step):
            end = min(start + step, self.hidden)
            out += functional.linear(self._gated(x, start, end), self.fc2.weight[:, start:end])
        return out.to(x.dtype)

    def _gated(self, x: Tensor, start: int, end: int) -> Tensor:
        """Hidden channels from `start` to `end`: (B, H, W, C) -> (B, H, W, end - start)."""
        weight, bias, half = self.fc1.weight, self.fc1.bias, self.hidden
        gate = functional.linear(x, weight[start:end], bias[start:end]).permute(0, 3, 1, 2)
        value = functional.linear(x, weight[half + start : half + end], bias[half + start : half + end])
        value = value.permute(0, 3, 1, 2)
        weight, bias = self.dwconv.weight, self.dwconv.bias
        assert bias is not None  # scripts do not know
        out = depthwise_conv(gate, weight[start:end], bias[start:end], activation="gelu", gate=value)
        return out.permute(0, 2, 3, 1)


class TransNeXt(Pyramid):
    """Four stages, each a strided convolution with a LayerNorm, `depths[i]` blocks, and a LayerNorm.

    Args:
        depths: blocks a stage.
        dims: channels a stage, multiples of 24, the size of a head.
        ratios: pixels a side that pooling makes one, by stage; 1 attends to every pixel instead.
        mlp_ratios: hidden channels of a block's MLP over its channels, before the gate takes a third.
        position_bias: "extrapolation": computed for the map at hand. "interpolation": computed for an image of
            `bias_size` pixels squared and resized.
        bias_size: see `position_bias`; None takes `pretrain_size`.
        pretrain_size: side of the images that the weights were trained with, which distances are measured by.
        fixed_pool_size: side of every pooled map, whatever the image; None pools by `ratios`.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
        others: see `Pyramid`.

    Raises:
        UserError: an option that is none of these.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 15, 2),
        dims: tuple[int, ...] = (72, 144, 288, 576),
        ratios: tuple[int, ...] = (8, 4, 2, 1),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        position_bias: str = "extrapolation",
        bias_size: int | None = None,
        pretrain_size: int = 224,
        fixed_pool_size: int | None = None,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        _check_options(position_bias, bias_size, pretrain_size, fixed_pool_size)
        rates = drop_path_ramp(drop_path_rate, depths)
        stages = []
        for i, (before, dim) in enumerate(pairwise((in_chans, *dims))):
            kernel, stride = (3, 2) if i else (7, 4)
            conv = nn.Conv2d(before, dim, kernel, stride, padding=kernel // 2, **dd)
            downsample = nn.Sequential(OrderedDict(conv=conv, norm=LayerNorm2d(dim, eps=1e-5, **dd)))
            heads, ratio, fixed = dim // HEAD_DIM, ratios[i], fixed_pool_size or 0
            sides = {"unit": (pretrain_size >> i + 2) - 1}
            if position_bias == "interpolation":
                own = (bias_size or pretrain_size) >> i + 2
                sides |= {"own_queries": own, "own_keys": max(1, own // ratio) if ratio == 1 or not fixed else fixed}
            blocks = []
            for rate in rates[i]:
                bias = PositionBias(heads, **sides, **dd)
                if ratio > 1:
                    attn = FovealAttention(dim, heads, ratio, fixed, bias, **dd)
                else:
                    attn = CosineAttention(dim, heads, bias, **dd)
                mlp = ConvGLU(dim, 2 * (dim * mlp_ratios[i]) // 3, **dd)
                blocks.append(Block(dim, attn, mlp, rate, EPS, **dd))
            stages.append(TokenStage(downsample, blocks, nn.LayerNorm(dim, eps=EPS, **dd)))
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
        elif isinstance(module, Attention):
            module.init_tables()

    @torch.jit.ignore()
    def no_weight_decay(self) -> set[str]:
        """Whatever scales or biases the scores, but for `learnable_tokens` and `learnable_bias`, as the authors do."""
        kinds = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature")
        return {key for key, _ in self.named_parameters() if any(kind in key for kind in kinds)}


def _check_options(position_bias: str, bias_size: int | None, pretrain_size: int, fixed_pool_size: int | None) -> None:
    if position_bias not in ("extrapolation", "interpolation"):
        raise UserError(f"position_bias is {position_bias!r}; it takes 'extrapolation' or 'interpolation'")
    if type(pretrain_size) is not int or pretrain_size < 64:
        accepted = "it takes a whole number, 64 or more: the last map needs two pixels a side"
        raise UserError(f"pretrain_size is {pretrain_size!r}; {accepted}")
    for name, value, least in (("bias_size", bias_size, 32), ("fixed_pool_size", fixed_pool_size, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise UserError(f"{name} is {value!r}; it takes None, or a whole number, {least} or more")


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: TransNeXt) -> dict[str, Tensor]:
    """The authors' checkpoint, classifier or detector, or one of ours, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    return convert_keys(checkpoint, model, _rename)


_BLOCK_PARTS = {
    ".mlp.dwconv.dwconv.": ".mlp.dwconv.",
    ".attn.cpb_": ".attn.cpb.",
    ".downsample.proj.": ".downsample.conv.",
}


def _rename(key: str) -> str:
    """`block1.0.attn.cpb_fc1.weight` -> `stages.0.blocks.0.attn.cpb.fc1.weight`; keys of ours stay as they are."""
    return rename_numbered(key, _BLOCK_PARTS)


def _cfg(file: str, **entries: Any) -> dict[str, Any]:
    return weights_cfg(
        url=f"https://huggingface.co/DaiShiResearch/{file}",
        license="apache-2.0",
        paper_ids="arXiv:2311.17132",
        paper_name="TransNeXt: Robust Foveal Visual Perception for Vision Transformers",
        origin_url="https://github.com/DaiShiResearch/TransNeXt",
        **entries,
    )


_AT_256 = {"input_size": (3, 256, 256), "pool_size": (8, 8)}

default_cfgs = generate_default_cfgs(
    {
        "transnext_micro.in1k": _cfg("transnext-micro-224-1k/resolve/main/transnext_micro_224_1k.pth"),
        "transnext_tiny.in1k": _cfg("transnext-tiny-224-1k/resolve/main/transnext_tiny_224_1k.pth"),
        "transnext_small.in1k": _cfg("transnext-small-224-1k/resolve/main/transnext_small_224_1k.pth"),
        "transnext_base.in1k": _cfg("transnext-base-224-1k/resolve/main/transnext_base_224_1k.pth"),
        "transnext_small_384.in1k": _cfg(
            "transnext-small-384-1k-ft-1k/resolve/main/transnext_small_384_1k_ft_1k.pth", **AT_384
        ),
        "transnext_base_384.in1k": _cfg(
            "transnext-base-384-1k-ft-1k/resolve/main/transnext_base_384_1k_ft_1k.pth", **AT_384
        ),
        "transnext_micro_aaaa_256.in1k": _cfg(
            "transnext-micro-AAAA-256-1k/resolve/main/transnext_micro_AAAA_256_1k.pth", **_AT_256
        ),
    }
)

_MICRO = {"dims": (48, 96, 192, 384)}
_SMALL = {"depths": (5, 5, 22, 5)}
_BASE = {"depths": (5, 5, 23, 5), "dims": (96, 192, 384, 768)}


def _create_transnext(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> TransNeXt:
    return build(TransNeXt, name, pretrained, checkpoint_filter_fn, **(sizes | kwargs))


@register_model
def transnext_micro(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """12.8 M parameters, 2.7 GFLOPs, 82.5 % top-1."""
    return _create_transnext("transnext_micro", pretrained, kwargs, **_MICRO)


@register_model
def transnext_tiny(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """28.3 M parameters, 5.7 GFLOPs, 84.0 % top-1."""
    return _create_transnext("transnext_tiny", pretrained, kwargs)


@register_model
def transnext_small(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """49.7 M parameters, 10.3 GFLOPs, 84.7 % top-1."""
    return _create_transnext("transnext_small", pretrained, kwargs, **_SMALL)


@register_model
def transnext_base(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """89.7 M parameters, 18.4 GFLOPs, 84.8 % top-1."""
    return _create_transnext("transnext_base", pretrained, kwargs, **_BASE)


@register_model
def transnext_small_384(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """49.7 M parameters; fine-tuned at 384 pixels: 32.1 GFLOPs, 86.0 % top-1."""
    return _create_transnext("transnext_small_384", pretrained, kwargs, **_SMALL)


@register_model
def transnext_base_384(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """89.7 M parameters; fine-tuned at 384 pixels: 56.3 GFLOPs, 86.2 % top-1."""
    return _create_transnext("transnext_base_384", pretrained, kwargs, **_BASE)


@register_model
def transnext_micro_aaaa_256(pretrained: bool = False, **kwargs: Any) -> TransNeXt:
    """13.1 M parameters, neighbours and pooling in the last stage too; at 256 pixels: 3.3 GFLOPs, 82.6 % top-1."""
    sizes = {"ratios": (16, 8, 4, 2), "pretrain_size": 256}
    return _create_transnext("transnext_micro_aaaa_256", pretrained, kwargs, **_MICRO, **sizes)
