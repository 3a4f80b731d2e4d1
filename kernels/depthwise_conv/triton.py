"""`depthwise_conv` on Triton, with what follows the convolution in the same pass, in either memory format.

The operator takes maps as they lie in memory: (B, H, W, C) if `last`, else (B, C, H, W), with any strides; so do its
gradients, which need no change of layout then.
"""

from typing import Any

import torch
from torch import Tensor

from .._precision import in_autocast
from .._triton import INTERPRETED, divide_up, launch, like, numerics, register, sums_in

_PROGRAMS = 1024
"""About so many programs share the sums over all pixels: fixed, so that they are the same on every GPU."""

_ROWS = 4
"""So many rows share what is read: more of them need more registers, and fit fewer maps, above all with gaps."""

_THREADS = 128

_SCALE = 32 if INTERPRETED else 1
"""The interpreter takes its time for programs, whatever their size: with larger ones, models take seconds in it."""


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See `vertebra.kernels.depthwise_conv`."""
    dtype = _result_dtype(x, gate, residual)
    last = x.stride(1) < x.stride(3)
    adds_x = residual is x
    if adds_x:
        residual = None
    maps = [None if m is None else m.permute(0, 2, 3, 1) if last else m for m in (x, gate, residual)]
    gelu = activation == "gelu"
    (out,) = _operator(maps[0], weight, bias, maps[1], maps[2], dilation, gelu, adds_x, last, dtype)
    return out.permute(0, 3, 1, 2) if last else out


def _result_dtype(x: Tensor, gate: Tensor | None, residual: Tensor | None) -> torch.dtype:
    """As PyTorch has it: autocast wants the convolution in its own dtype, and what follows widens that."""
    dtype = torch.get_autocast_dtype(x.device.type) if in_autocast(x) else x.dtype
    for other in (gate, residual):
        if other is not None:
            dtype = torch.promote_types(dtype, other.dtype)
    return dtype


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dilation: int,
    gelu: bool,
    adds_x: bool,
    last: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The result, which lies in memory as x does."""
    if adds_x:
        residual = x
    out = _shapes(x, weight, bias, gate, residual, dilation, gelu, adds_x, last, dtype)
    _convolve(_Plan(x, weight, dilation, last), x, weight, bias, gate, residual, out, gelu)
    return out


def backward(
    grad: Tensor,
    wanted: list[bool],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dilation: int,
    gelu: bool,
    adds_x: bool,
    last: bool,
    dtype: torch.dtype,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and gate.

    The gradient of the convolution's sums is rounded to the dtype of x, as it is where PyTorch differentiates GELU: it
    is read twice, by the kernels for x and for weight, and what they add up of it they add up in float32.
    """
    plan = _Plan(x, weight, dilation, last)
    dx, dweight, dbias, dgate = (like(m, grad) for m in (x, weight, bias, gate))
    dsums = grad
    if gelu or gate is not None:
        dsums = like(x, grad)
        _differentiate(plan, grad, x, weight, bias, gate, dsums, dgate, gelu)
    if wanted[0]:
        _convolve(plan, dsums, weight, None, None, grad if adds_x else None, dx, False, reverse=True)
    if not any(wanted[1:3]):
        return dx, dweight, dbias, dgate
    taps = _taps(plan, x, dsums)
    dweight.view(plan.channels, -1).copy_(taps[:-1].t())
    if bias is not None:
        dbias.copy_(taps[-1])
    return dx, dweight, dbias, dgate


def _shapes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dilation: int,
    gelu: bool,
    adds_x: bool,
    last: bool,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _flops(x: Tensor, weight: Tensor, *_: Any) -> int:
    return 2 * x.numel() * weight[0].numel()


# the residual has a gradient all the same: see _SumOf
_operator = register(
    "depthwise_conv",
    forward,
    _shapes,
    backward,
    _flops,
    unread=("residual", "out"),
    added=("residual",),
    backward_flops=2.0,
)


class _Plan:
    """How pixels and channels are dealt to programs."""

    def __init__(self, x: Tensor, weight: Tensor, dilation: int, last: bool) -> None:
        self.batch, self.channels, self.height, self.width = (x.shape[i] for i in ((0, 3, 1, 2) if last else range(4)))
        self.last = last
        self.kernel: int = weight.shape[-1]
        self.dilation = dilation
        self.rows = _ROWS
        self.bands = divide_up(divide_up(self.height, dilation), self.rows)
        self.lanes = self.batch * dilation * self.bands * self.width

    def tile(self, each: int) -> tuple[int, int]:
        """(lanes, channels) of a tile of which a thread has `each` channels of one lane."""
        if not self.last:
            return _THREADS * _SCALE, each
        wide, narrow = (divide_up(self.channels, n) * n for n in (64, 32))
        channels = (64 if wide <= narrow else 32) * _SCALE
        return _THREADS * _SCALE * each // channels, channels

    def sizes(self, channels: int) -> tuple[int, ...]:
        """What all kernels take, for tiles of so many channels."""
        return self.height, self.width, self.channels, self.lanes, self.bands, divide_up(self.channels, channels)

    def constants(self, tile: tuple[int, int], x: Tensor) -> dict[str, Any]:
        """And their constants."""
        return {
            "K": self.kernel,
            "DILATION": self.dilation,
            "ROWS": self.rows,
            "LANES": tile[0],
            "CHANNELS": tile[1],
            "WHOLE": self.channels % tile[1] == 0,
            "LAST": self.last,
            "ACC": numerics(x)["ACC"],
            "num_warps": _THREADS // 32,
        }

    def strides(self, x: Tensor | None) -> list[int]:
        """Of image, row, column and channel."""
        return [0] * 4 if x is None else [x.stride(i) for i in ((0, 1, 2, 3) if self.last else (0, 2, 3, 1))]


def _convolve(
    plan: _Plan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    gelu: bool,
    reverse: bool = False,
) -> None:
    """Fill `out`."""
    from . import forward as kernels

    tile = plan.tile(16 // x.element_size())  # channels that are read at once
    launch(
        kernels.forward, divide_up(plan.lanes, tile[0]) * divide_up(plan.channels, tile[1]),
        x, _table(weight), _or(bias, x), _or(gate, x), _or(residual, x), out,
        *plan.sizes(tile[1]), *(s for m in (x, gate, residual, out) for s in plan.strides(m)),
        **plan.constants(tile, x), BIAS=bias is not None, GELU=gelu, GATE=gate is not None,
        RESIDUAL=residual is not None, REVERSED=reverse,
    )  # fmt: skip


def _differentiate(
    plan: _Plan,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    dsums: Tensor,
    dgate: Tensor,
    gelu: bool,
) -> None:
    """Fill the gradients of the convolution's sums and of the gate."""
    from . import backward as kernels

    tile = plan.tile(16 // x.element_size())  # channels that are read at once
    launch(
        kernels.backward_sums, divide_up(plan.lanes, tile[0]) * divide_up(plan.channels, tile[1]),
        x, _table(weight), _or(bias, x), _or(gate, x), grad, dsums, dgate,
        *plan.sizes(tile[1]), *(s for m in (x, gate, grad, dsums) for s in plan.strides(m)),
        **plan.constants(tile, x), BIAS=bias is not None, GELU=gelu, GATE=gate is not None,
    )  # fmt: skip


def _taps(plan: _Plan, x: Tensor, dsums: Tensor) -> Tensor:
    """(k * k + 1, C): the gradients of the taps, and of the bias."""
    from . import backward as kernels

    # all taps' sums of its channels have to fit into the registers of a thread
    tile = plan.tile(2 if plan.kernel == 7 or (plan.kernel == 5 and x.element_size() > 2) else 4)
    blocks, tiles = divide_up(plan.channels, tile[1]), divide_up(plan.lanes, tile[0])
    rounds = divide_up(tiles, max(1, _PROGRAMS // blocks))
    chunks = divide_up(tiles, max(1, rounds))
    taps = x.new_empty(chunks, plan.kernel**2 + 1, plan.channels, dtype=sums_in(x))
    launch(
        kernels.backward_taps, blocks * chunks,
        x, dsums, taps, *plan.sizes(tile[1]), rounds, *plan.strides(x), *plan.strides(dsums),
        **plan.constants(tile, x),
    )  # fmt: skip
    return taps.sum(0)


def _table(weight: Tensor) -> Tensor:
    """(C, 1, k, k) -> (k * k, C), in which programs read the channels of a tap beside each other."""
    return weight.flatten(1).t().contiguous()


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that is not followed, in the place of None."""
    return other if x is None else x
