"""LITv2: no attention where maps are large, and then heads split between 2 x 2 windows and a pooled map (HiLo).

Paper    Pan et al., Fast Vision Transformers with HiLo Attention, NeurIPS 2022, https://arxiv.org/abs/2205.13213;
         deformable token merging: Pan et al., Less is More, AAAI 2022, https://arxiv.org/abs/2105.14217
Weights  https://github.com/ziplab/LITv2 (Apache-2.0), renamed by `checkpoint_filter_fn`
Layout   (B, H, W, C) inside a stage; maps at strides 4, 8, 16, 32 leave without a norm, the last one is normed before
         the classifier
Sizes    any H, W from 32 up, as in the authors' dense code: images are padded to multiples of 4, merging drops an odd
         last row or column, and windows are filled with zeros after the norm. Nothing is fixed when the model is built
Options  `depths`; `hilo_window`, the side of the third stage's windows (the authors' detectors also come with 4)
Merging  torchvision's deformable convolution on CUDA devices, where its gradient is not deterministic; on a CPU moved
         pixels under a plain convolution. In scripts, graphs and exports, after
         `torch.use_deterministic_algorithms(True)` on CUDA, and with VERTEBRA_KERNELS=reference the pixels are moved by
         standard operators, and only these have a double backward
Recipe   the authors train the weights that predict the offsets with a hundredth of the learning rate
Kernels  window_attention, global_attention
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d

from ..kernels import dispatch
from ..kernels._layout import fill_map, in_order, is_eager
from ..kernels.global_attention import global_attention
from ._errors import UserError
from ._keys import convert_keys, replace_parts
from ._layers import Block, TokenConv, attend_in_windows, bias_of, is_plain
from ._pyramid import AT_384, Pyramid, TokenStage, build, drop_path_ramp, init_conv_fan_out_, weights_cfg

__all__ = ["LITv2"]

EPS = 1e-5  # of every LayerNorm
LOW = 0.9  # share of the heads that see the pooled map, rounded down
HEAD_DIM = 32
MLP_RATIO = 4
CACHED = 2**20  # numbers that stay in a CPU's cache from one layer to the next


@register_notrace_module
class PatchConv(nn.Conv2d):
    """Patches of 4 x 4 pixels, of an image filled up with zeros: (B, C_in, H, W) -> (B, C, ceil(H/4), ceil(W/4))."""

    def __init__(self, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__(in_chans, dim, 4, stride=4, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = fill_map(x.permute(0, 2, 3, 1), 4).permute(0, 3, 1, 2)
        return self._conv_forward(x, self.weight, self.bias)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each position (...) on an axis: their numbers and their shares (..., 2), 0 outside."""
    low = position.floor()
    part = position - low
    near = torch.stack([low, low + 1], -1)
    shares = torch.stack([1 - part, part], -1) * ((near >= 0) & (near < size))
    return near.long().clamp(0, size - 1), shares


def _corners(offset: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where 2 x 2 taps read in a map (B, height, width), flat: rows and shares of four pixels a tap, (B * 2h * 2w, 4).

    offset (B, 8, h, w) moves tap t = 2 i + j by channel 2 t down and by channel 2 t + 1 to the right, in pixels.
    """
    batch, _, h, w = offset.shape
    moves = offset.reshape(batch, 2, 2, 2, h, w).permute(0, 4, 1, 5, 2, 3)  # (B, h, i, w, j, down and right)
    ys, xs, images, tap = (torch.arange(n, device=offset.device) for n in (h, w, batch, 2))
    y, share_y = _neighbours(moves[..., 0] + (2 * ys[:, None] + tap)[..., None, None], height)
    x, share_x = _neighbours(moves[..., 1] + (2 * xs[:, None] + tap), width)
    rows = (images[:, None, None, None, None, None] * height + y)[..., :, None] * width + x[..., None, :]
    shares = share_y[..., :, None] * share_x[..., None, :]
    return rows.reshape(-1, 4), shares.reshape(-1, 4)


def move_pixels(x: Tensor, offset: Tensor) -> Tensor:
    """What each tap of a 2 x 2 convolution with stride 2 reads, bilinearly, when `offset` moves it; 0 outside the map.

    Args:
        x: (B, C, H, W).
        offset: (B, 8, H//2, W//2), as `torchvision.ops.deform_conv2d` takes it.

    Returns:
        (B, C, H//2*2, W//2*2), in the dtype of `x`: the convolution of this map is the deformable one.
    """
    dtype = x.dtype
    if dtype != torch.float64:
        x, offset = x.float(), offset.float()
    batch, dim, height, width = x.shape
    rows, shares = _corners(offset, height, width)
    table = x.permute(0, 2, 3, 1).reshape(-1, dim)
    if torch.jit.is_scripting():
        out = _mix_rows(table, rows, shares)
    elif is_eager(x) and x.device.type == "cpu" and not dispatch.is_reference(None):
        out = functional.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
    else:
        out = _mix_rows(table, rows, shares)
    out = out.to(dtype).reshape(batch, offset.shape[2] * 2, offset.shape[3] * 2, dim).permute(0, 3, 1, 2)
    return in_order(out)


def _mix_rows(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """The sums of four rows of `table` (N, C), weighed by `shares`: rows and shares (M, 4) -> (M, C)."""
    out = table.index_select(0, rows[:, 0]) * shares[:, :1]
    for i in range(1, 4):
        out = out + table.index_select(0, rows[:, i]) * shares[:, i : i + 1]
    return out


@register_notrace_module
class DeformableMerging(nn.Module):
    """Make one token of four, each read where its place in the map asks for: (B, C, H, W) -> (B, 2C, H//2, W//2)."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.offset = nn.Conv2d(dim, 8, 2, stride=2, **dd)
        self.conv = nn.Conv2d(dim, 2 * dim, 2, stride=2, **dd)
        self.norm = nn.BatchNorm2d(2 * dim, **dd)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset(x)
        if torch.jit.is_scripting():
            x = self.conv(move_pixels(x, offset))
        elif self._wants_torchvision(x):
            x = self._by_torchvision(x, offset)
        else:
            x = self.conv(move_pixels(x, offset))
        return self.act(self.norm(x))

    @torch.jit.unused
    def _wants_torchvision(self, x: Tensor) -> bool:
        refused = torch.are_deterministic_algorithms_enabled() or dispatch.is_reference(None)
        return is_eager(x) and x.is_cuda and not refused

    @torch.jit.unused
    def _by_torchvision(self, x: Tensor, offset: Tensor) -> Tensor:
        precision = torch.promote_types(x.dtype, torch.float32)
        x, offset, weight, bias = (t.to(precision) for t in (x, offset, *self.conv.parameters()))
        return deform_conv2d(x, offset, weight, bias, stride=2).to(self.conv.weight.dtype)


class HighFrequency(nn.Module):
    """Attention among the tokens of each window: (B, H, W, C) -> (B, H, W, heads * head_dim)."""

    def __init__(self, dim: int, heads: int, head_dim: int, window: int, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, **dd)
        self.proj = nn.Linear(heads * head_dim, heads * head_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv(x.new_zeros([1, x.shape[3]]))[0] if torch.jit.is_scripting() else bias_of(self.qkv, x)
        return self.proj(attend_in_windows(self.qkv(x), bias, self.heads, (self.window, self.window)))


class LowFrequency(nn.Module):
    """Attention of each token to the means of all windows: (B, H, W, C) -> (B, H, W, heads * head_dim).

    The map is filled up to whole windows with zeros, which count. Windows of one token leave it as it is.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, window: int, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.window = window
        self.q = nn.Linear(dim, heads * head_dim, **dd)
        self.kv = nn.Linear(dim, 2 * heads * head_dim, **dd)
        self.proj = nn.Linear(heads * head_dim, heads * head_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        means = x
        if self.window > 1:
            filled = fill_map(x, self.window).permute(0, 3, 1, 2)
            means = functional.avg_pool2d(filled, self.window).permute(0, 2, 3, 1)
        q = self.q(x).reshape(batch, height * width, self.heads, self.head_dim)
        kv = self.kv(means).reshape(batch, means.shape[1] * means.shape[2], 2, self.heads, self.head_dim)
        k, v = kv.unbind(2)
        return self.proj(global_attention(q, k, v)).reshape(batch, height, width, self.heads * self.head_dim)


@register_notrace_module
class HiLo(nn.Module):
    """A tenth of the heads for what is near, the others for what is far: (B, H, W, C) -> (B, H, W, C).

    With windows of one token all heads see all tokens.
    """

    def __init__(self, dim: int, heads: int, window: int, **dd: Any) -> None:
        super().__init__()
        self.window = window
        low = int(heads * LOW) if window > 1 else heads
        self.hi = HighFrequency(dim, heads - low, dim // heads, window, **dd) if low < heads else None
        self.lo = LowFrequency(dim, low, dim // heads, window, **dd)

    def forward(self, x: Tensor) -> Tensor:
        low = self.lo(x)
        if self.hi is None:
            return low
        return torch.cat([self.hi(x), low], -1)


class Mlp(nn.Module):
    """Two linear layers with a depthwise 3 x 3 convolution and a GELU between them: (B, H, W, C) -> (B, H, W, C).

    In inference on a CPU a large batch runs in pieces: what is between the layers then stays in the cache.
    """

    def __init__(self, dim: int, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.dwconv = TokenConv(hidden, 3, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._run(x)
        if is_eager(x) and x.device.type == "cpu" and not torch.is_grad_enabled():
            pieces = x.numel() * MLP_RATIO // CACHED
            if pieces > 1 and is_plain(self.fc1, self.dwconv, self.act, self.fc2):
                return torch.cat([self._run(part) for part in x.chunk(pieces)])
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class MlpBlock(nn.Module):
    """An MLP behind a norm, added to its input: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, mlp: nn.Module, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=EPS, **dd)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _block(dim: int, window: int | None, drop_path: float, **dd: Any) -> nn.Module:
    """With HiLo attention where there are windows."""
    mlp = Mlp(dim, dim * MLP_RATIO, **dd)
    if window is None:
        return MlpBlock(dim, mlp, drop_path, **dd)
    return Block(dim, HiLo(dim, dim // HEAD_DIM, window, **dd), mlp, drop_path, EPS, **dd)


class LITv2(Pyramid):
    """Two stages of MLPs with convolutions, two of HiLo attention; the channels double from stage to stage.

    Args:
        depths: blocks a stage.
        dim: channels of the first stage, a multiple of 32.
        hilo_window: side of the windows in the third stage; the fourth has none.
        drop_path_rate: stochastic depth of the last block; the others lie on a line from 0.
        others: see `Pyramid`.

    Raises:
        UserError: `hilo_window` is not a whole number from 2 up.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dim: int = 96,
        hilo_window: int = 2,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(hilo_window, int) or hilo_window < 2:
            raise UserError(
                f"hilo_window is {hilo_window!r}; it takes a whole number from 2 up: "
                "windows of one token would leave the high-frequency heads, which the weights have, nothing to do"
            )
        dd = {"device": device, "dtype": dtype}
        dims = [dim * 2**i for i in range(4)]
        stages = []
        rates = drop_path_ramp(drop_path_rate, depths)
        for i, window in enumerate((None, None, hilo_window, 1)):
            if i:
                downsample = DeformableMerging(dims[i - 1], **dd)
            else:
                conv, norm = PatchConv(in_chans, dim, **dd), LayerNorm2d(dim, eps=EPS, **dd)
                downsample = nn.Sequential(OrderedDict(conv=conv, norm=norm))
            stages.append(TokenStage(downsample, [_block(dims[i], window, rate, **dd) for rate in rates[i]]))
        super().__init__(
            stages,
            dims,
            norm=LayerNorm2d(dims[-1], eps=EPS, **dd),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenConv):
            init_conv_fan_out_(module)
        elif isinstance(module, DeformableMerging):
            nn.init.zeros_(module.offset.weight)
            nn.init.zeros_(module.offset.bias)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: LITv2) -> dict[str, Tensor]:
    """The authors' checkpoint, classifier or dense, or one of ours, as a state dict of `model`.

    Raises:
        UserError: the file is none of these, or of another variant; names the keys at fault.
    """
    return convert_keys(checkpoint, model, _rename)


_PARTS = {
    ".mlp.dwconv.dwconv.": ".mlp.dwconv.",
    ".attn.l_": ".attn.lo.",
    ".attn.h_": ".attn.hi.",
    ".dconv.conv_offset.": ".offset.",
    ".dconv.": ".conv.",
    ".norm_layer.": ".norm.",
}


def _rename(key: str) -> str | None:
    """`layers.2.blocks.0.attn.l_kv.bias` -> `stages.2.blocks.0.attn.lo.kv.bias`; keys of ours stay as they are."""
    if re.match(r"norm\d\.", key):
        return None  # the norms of a detector's maps
    if key.startswith(("patch_embed.", "layers.")):
        key = re.sub(
            r"^patch_embed\.(proj|norm)\.",
            lambda m: f"stages.0.downsample.{'conv' if m[1] == 'proj' else 'norm'}.",
            key,
        )
        key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", key)
        key = re.sub(r"^layers\.", "stages.", key)
        key = replace_parts(key, _PARTS)
    return key


def _cfg(file: str, **entries: Any) -> dict[str, Any]:
    return weights_cfg(
        url=f"https://github.com/ziplab/LITv2/releases/download/v1.0/{file}",
        license="apache-2.0",
        paper_ids="arXiv:2205.13213",
        paper_name="Fast Vision Transformers with HiLo Attention",
        origin_url="https://github.com/ziplab/LITv2",
        **entries,
    )


default_cfgs = generate_default_cfgs(
    {
        "litv2_small.in1k": _cfg("litv2_s.pth"),
        "litv2_medium.in1k": _cfg("litv2_m.pth"),
        "litv2_base.in1k": _cfg("litv2_b.pth"),
        "litv2_base_384.in1k": _cfg("litv2_b_384.pth", **AT_384),
    }
)


def _create_litv2(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> LITv2:
    return build(LITv2, name, pretrained, checkpoint_filter_fn, **(sizes | kwargs))


@register_model
def litv2_small(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """27.8 M parameters, 3.7 GFLOPs, 82.0 % top-1."""
    return _create_litv2("litv2_small", pretrained, kwargs, depths=(2, 2, 6, 2), dim=96)


@register_model
def litv2_medium(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """48.8 M parameters, 7.5 GFLOPs, 83.3 % top-1."""
    return _create_litv2("litv2_medium", pretrained, kwargs, depths=(2, 2, 18, 2), dim=96)


@register_model
def litv2_base(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """86.5 M parameters, 13.2 GFLOPs, 83.6 % top-1."""
    return _create_litv2("litv2_base", pretrained, kwargs, depths=(2, 2, 18, 2), dim=128)


@register_model
def litv2_base_384(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """86.5 M parameters, 39.7 GFLOPs at 384 pixels, 84.7 % top-1."""
    return _create_litv2("litv2_base_384", pretrained, kwargs, depths=(2, 2, 18, 2), dim=128)
