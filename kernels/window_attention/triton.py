"""`window_attention` on Triton: windows are read from the map and written to it, with no copy before, between or after.

Where two halves of the heads attend in different windows, each writes its half of one result.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._triton import divide_up, like, register, sums_in
from .launches import Inputs, Plan, gradients, lepe_gradient, result


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str = "block",
    scale: float | None = None,
    bias_table: Tensor | None = None,
    pad: Tensor | None = None,
    pad_offset: tuple[int, int] = (0, 0),
    lepe_weight: Tensor | None = None,
    lepe_bias: Tensor | None = None,
    cross_window: tuple[int, int] | None = None,
    cross_offset: tuple[int, int] = (0, 0),
) -> Tensor:
    """See `vertebra.kernels.window_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    geometry = [*window, *pad_offset]
    if cross_window is not None:
        geometry += [*cross_window, *cross_offset]
    return _operator(q, k, v, bias_table, pad, lepe_weight, lepe_bias, geometry, partition == "grid", scale)[0]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    grid: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(out, lse); geometry: wh, ww, top, left, and these four again where half of the heads has other windows."""
    out, lse = _shapes(q, k, v, table, pad, lepe_weight, lepe_bias, geometry, grid, scale)
    for part in _parts(q, geometry):
        plan = Plan(part.of_heads(q), part.geometry, grid, table is not None)
        inputs = part.inputs(q, k, v, table, pad, lepe_weight, lepe_bias, scale)
        result(plan, inputs, out[..., part.channels], lse[part.rows])
    return out, lse


def backward(
    grad: Tensor,
    wanted: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    grid: bool,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, table, pad, lepe_weight and lepe_bias."""
    dq, dk, dv, dtable, dpad, dweight, dbias = (like(x, grad) for x in (q, k, v, table, pad, lepe_weight, lepe_bias))
    for part in _parts(q, geometry):
        plan = Plan(part.of_heads(q), part.geometry, grid, table is not None)
        inputs = part.inputs(q, k, v, table, pad, lepe_weight, lepe_bias, scale)
        ahead, room = grad[..., part.channels], [part.of_heads(x) for x in (dq, dk, dv)]
        of_table, of_pad = gradients(plan, inputs, ahead, out[..., part.channels], lse[part.rows], room, wanted[3])
        if table is not None and wanted[3]:
            dtable.copy_(of_table)
        if pad is not None:
            dpad[:, part.heads] = of_pad
        if lepe_weight is not None and any(wanted[5:]):
            sums = lepe_gradient(plan, inputs, ahead)
            dweight[part.channels] = sums[:, :9].transpose(1, 2).reshape(-1, 1, 3, 3)
            if lepe_bias is not None:
                dbias[part.channels] = sums[:, 9].flatten()
    return dq, dk, dv, dtable, dpad, dweight, dbias


@dataclass(frozen=True)
class _Part:
    """The heads that attend in the same windows: their numbers, their channels, and their rows of `lse`."""

    geometry: list[int]
    heads: slice
    channels: slice
    rows: slice

    def of_heads(self, x: Tensor) -> Tensor:
        """Of (B, H, W, heads, D)."""
        return x[:, :, :, self.heads]

    def inputs(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        pad: Tensor | None,
        lepe_weight: Tensor | None,
        lepe_bias: Tensor | None,
        scale: float,
    ) -> Inputs:
        """What the kernels of these heads read. Tables, which are small, in the order in which they read them."""
        return Inputs(
            q=self.of_heads(q),
            k=self.of_heads(k),
            v=self.of_heads(v),
            table=None if table is None else table.contiguous(),
            pad=None if pad is None else pad[:, self.heads].contiguous(),
            lepe_weight=None if lepe_weight is None else lepe_weight[self.channels].contiguous(),
            lepe_bias=None if lepe_bias is None else lepe_bias[self.channels].contiguous(),
            scale=scale,
        )


def _parts(q: Tensor, geometry: list[int]) -> list[_Part]:
    batch, height, width, heads, head_dim = q.shape
    places = [geometry[i : i + 4] for i in range(0, len(geometry), 4)]
    heads //= len(places)
    parts, start = [], 0
    for i, (wh, ww, top, left) in enumerate(places):
        end = start + heads * batch * divide_up(top + height, wh) * divide_up(left + width, ww) * wh * ww
        here = slice(i * heads, (i + 1) * heads)
        channels = slice(here.start * head_dim, here.stop * head_dim)
        parts.append(_Part(places[i], here, channels, slice(start, end)))
        start = end
    return parts


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    grid: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])
    return out, q.new_empty(_parts(q, geometry)[-1].rows.stop, dtype=sums_in(q))


def _flops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    *_: Any,
) -> int:
    taps = 0 if lepe_weight is None else 18
    of_channels = 0
    for part in _parts(q, geometry):
        rows = part.rows.stop - part.rows.start  # one for each query of each head
        of_channels += rows * (4 * part.geometry[0] * part.geometry[1] + taps)
    return of_channels * q.shape[4]


_operator = register("window_attention", forward, _shapes, backward, _flops)
