"""The ways to compute an operator that `benchmark kernels` compares, and whether they compute it right.

triton              the kernels
eager               the fast plain PyTorch that runs without them
reference           the authors' composition, written plainly
compiled            torch.compile of eager
compiled_reference  torch.compile of reference
sdpa                windows or routed regions cut out, PyTorch's scaled_dot_product_attention, and put together again
flex                flex_attention over the tokens in the order of windows: a mask keeps to the window, and the bias is
                    added to the scores
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import flex_attention as flex
from vertebra.kernels.dispatch import BackendError, explain
from vertebra.kernels.routing_attention import reference as routing
from vertebra.kernels.window_attention import reference as windows
from vertebra.tools._benchmark.kernel_cases import Arguments, cast, cut, learned, main_input
from vertebra.tools._benchmark.worker import why_not_compiled

Run = Callable[[Arguments], Tensor]
WAYS = ("triton", "eager", "reference", "compiled", "compiled_reference", "sdpa", "flex")
_FLEX_BLOCK = 128
_WORST = 2.0
"""How many times the error of the reference in the same dtype a way may have."""


class RefusedError(Exception):
    """A way that is no way to compute this case here; the message says why."""


def build(operator: str, way: str, arguments: Arguments) -> Run:
    """How `way` computes the operator for these arguments. RefusedError, with the reason, if it cannot."""
    function = getattr(import_module(f"vertebra.kernels.{operator}"), operator)
    device = main_input(arguments).device.type
    if way == "triton":
        try:
            explain(function, **arguments, backend="triton")
        except BackendError as error:
            raise RefusedError(str(error).partition(" asks: ")[2] or str(error)) from error
        return lambda given: function(**given, backend="triton")
    if way in ("eager", "reference"):
        return _plain(partial(function, backend=way))
    if way in ("compiled", "compiled_reference"):
        _need_compiler(device)
        backend = "reference" if way == "compiled_reference" else "eager"
        return torch.compile(_plain(partial(function, backend=backend)), dynamic=False)
    run = _OTHERS.get((operator, way))
    if run is None:
        raise RefusedError(f"{way} cannot express {operator}")
    if way == "flex":
        if device == "cpu":
            raise RefusedError("flex_attention has no backward pass on a CPU")
        _need_compiler(device)
        if arguments["lepe_weight"] is not None:
            raise RefusedError("flex cannot express a convolution inside the windows")
    return _plain(run)


class Judge:
    """The exact result and gradients of a case, and how far the reference in the case's own dtype is from them.

    Attributes:
        images: as many as memory allows, from all of them down to one.
    """

    def __init__(self, operator: str, arguments: Arguments) -> None:
        """Raises torch.OutOfMemoryError where memory is too small for one image in float64."""
        reference = _plain(
            partial(getattr(import_module(f"vertebra.kernels.{operator}"), operator), backend="reference")
        )
        self.images = len(main_input(arguments))
        while True:
            self._arguments = cut(arguments, self.images)
            try:
                self._exact = _results(reference, _in_float64(self._arguments))
                self._usual = self._errors(_results(reference, self._arguments))
                return
            except torch.OutOfMemoryError:
                self._exact = []
                if self.images == 1:
                    raise
            self.images //= 2

    def complaint(self, run: Run) -> str | None:
        """What is wrong with `run`, or None: its errors are at most twice those of the reference in this dtype."""
        dtype = main_input(self._arguments).dtype
        rounding = torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 64)  # long sums in another order
        for i, (error, usual) in enumerate(zip(self._errors(_results(run, self._arguments)), self._usual, strict=True)):
            if not error <= _WORST * usual + rounding:
                what = "the result" if i == 0 else f"the gradient of {self._names()[i - 1]}"
                return f"{what} is off by {error:.1e} of its size, and that of the reference by {usual:.1e}"
        return None

    def _errors(self, results: list[Tensor]) -> list[float]:
        """Root mean squares, relative to those of the exact tensors."""
        return [
            float((x.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp(min=1e-30))
            for x, exact in zip(results, self._exact, strict=True)
        ]

    def _names(self) -> list[str]:
        names: dict[int, str] = {}
        for name, x in self._arguments.items():
            if isinstance(x, Tensor) and x.requires_grad:
                names.setdefault(id(x), name)
        return list(names.values())


def _results(run: Run, arguments: Arguments) -> list[Tensor]:
    """The result, and the gradient of every tensor that has one, for a gradient of the result that varies."""
    out = run(arguments)
    ahead = torch.arange(out.numel(), device=out.device).cos().view_as(out).to(out.dtype)
    gradients = torch.autograd.grad(out, learned(arguments), ahead, materialize_grads=True)
    return [out.detach(), *gradients]


def _in_float64(arguments: Arguments) -> Arguments:
    """The same numbers in float64, as tensors of their own; one that stands twice stays one."""
    own: dict[int, Tensor] = {}
    for x in arguments.values():
        if isinstance(x, Tensor) and x.is_floating_point():
            own.setdefault(id(x), x.detach().double().requires_grad_(x.requires_grad))
    return {name: own.get(id(x), x) for name, x in arguments.items()}


def _plain(function: Callable[..., Tensor]) -> Run:
    """PyTorch's operators want one dtype, where kernels take parameters in float32 beside tokens in 16 bits."""
    return lambda given: function(**cast(given, main_input(given).dtype))


def _need_compiler(device: str) -> None:
    reason = why_not_compiled(device)
    if reason:
        raise RefusedError(reason)


def window_sdpa(cross_window: tuple[int, int] | None = None, **given: Any) -> Tensor:
    """See `vertebra.kernels.window_attention`."""
    return _in_halves(_window_sdpa, cross_window, **given)


def window_flex(cross_window: tuple[int, int] | None = None, **given: Any) -> Tensor:
    """See `vertebra.kernels.window_attention`; `attend` takes the place of a compiled flex_attention."""
    return _in_halves(_window_flex, cross_window, **given)


def _in_halves(
    run: Callable[..., Tensor],
    cross_window: tuple[int, int] | None,
    cross_offset: tuple[int, int] = (0, 0),
    **given: Any,
) -> Tensor:
    """All heads at once; or the first half of them, and the second in other windows."""
    if cross_window is None:
        return run(**given)
    heads = {"q": 3, "k": 3, "v": 3, "pad": 1, "lepe_weight": 0, "lepe_bias": 0}
    split = {name: given[name].chunk(2, dim) for name, dim in heads.items() if given.get(name) is not None}
    first, second = ({name: parts[i] for name, parts in split.items()} for i in range(2))
    other = {"window": cross_window, "pad_offset": cross_offset}
    return torch.cat([run(**given | first), run(**given | second | other)], -1)


def _window_sdpa(
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
) -> Tensor:
    cutting = (window, partition, pad, pad_offset)
    parts = [_windows(x, i, *cutting) for i, x in enumerate((q, k, v))]  # (B, rows, columns, heads, T, D)
    bias = None if bias_table is None else windows._bias(bias_table, window)
    a, b, c = (x.flatten(0, 2) for x in parts)
    out = functional.scaled_dot_product_attention(a, b, c, bias, scale=scale).view(parts[0].shape)
    if lepe_weight is not None:
        out = out + windows._lepe(parts[2], window, lepe_weight, lepe_bias)
    return _map(out, q, window, partition, pad_offset)


def _window_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str = "block",
    scale: float | None = None,
    bias_table: Tensor | None = None,
    pad: Tensor | None = None,
    pad_offset: tuple[int, int] = (0, 0),
    attend: Callable[..., Any] | None = None,
    **lepe: None,
) -> Tensor:
    cutting = (window, partition, pad, pad_offset)
    parts = [_windows(x, i, *cutting) for i, x in enumerate((q, k, v))]
    a, b, c = (x.permute(0, 3, 1, 2, 4, 5).flatten(2, 4) for x in parts)  # (B, heads, windows * T, D)
    mask = _window_mask(a.shape[2], window[0] * window[1], q.device)
    added = None if bias_table is None else _bias_of(bias_table, window)
    out = (attend or _compiled_flex())(a, b, c, score_mod=added, block_mask=mask, scale=scale)
    batch, rows, columns, heads, count, head_dim = parts[0].shape
    out = out.view(batch, heads, rows, columns, count, head_dim).permute(0, 2, 3, 1, 4, 5)
    return _map(out, q, window, partition, pad_offset)


def _bias_of(table: Tensor, window: tuple[int, int]) -> Callable[..., Tensor]:
    """What flex_attention calls for every score."""
    (wh, ww), tokens = window, window[0] * window[1]

    def with_bias(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = i % tokens, j % tokens
        return score + table[head, key // ww - query // ww + wh - 1, key % ww - query % ww + ww - 1]

    return with_bias


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex.flex_attention, dynamic=False)


@cache
def _window_mask(length: int, tokens: int, device: torch.device) -> flex.BlockMask:
    """Queries see the keys of their window: those lie in a few neighbouring blocks, which are counted, not tried."""
    blocks = -(-length // _FLEX_BLOCK)
    first = torch.arange(blocks, device=device, dtype=torch.int32) * _FLEX_BLOCK
    last = (first + _FLEX_BLOCK - 1).clamp(max=length - 1)
    begin = first // tokens * tokens // _FLEX_BLOCK
    end = (last // tokens * tokens + tokens - 1).clamp(max=length - 1) // _FLEX_BLOCK
    indices = (begin[:, None] + torch.arange(blocks, device=device, dtype=torch.int32)) % blocks

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // tokens == key // tokens

    return flex.BlockMask.from_kv_blocks(
        (end - begin + 1)[None, None],
        indices[None, None],
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=same,
        seq_lengths=(length, length),
    )


def routing_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float | None = None,
    regions: tuple[int, int] | None = None,
) -> Tensor:
    """See `vertebra.kernels.routing_attention`."""
    batch, height, width, heads, head_dim = q.shape
    rows, columns = regions or (isqrt(index.shape[1]),) * 2
    a, b, c = (routing._regions(x, rows, columns) for x in (q, k, v))
    b, c = (routing._gather(x, index) for x in (b, c))
    out = functional.scaled_dot_product_attention(*(x.flatten(0, 1) for x in (a, b, c)), scale=scale)
    out = out.reshape(batch, rows, columns, heads, height // rows, width // columns, head_dim)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads * head_dim)


def _windows(
    x: Tensor, part: int, window: tuple[int, int], partition: str, pad: Tensor | None, pad_offset: tuple[int, int]
) -> Tensor:
    """q, k or v, by `part`, as (B, rows, columns, heads, T, D)."""
    (wh, ww), (top, left), (height, width) = window, pad_offset, x.shape[1:3]
    bottom, right = -(top + height) % wh, -(left + width) % ww
    if top or left or bottom or right:
        fill = x.new_zeros(x.shape[3:]) if pad is None else pad[part]
        x = windows._pad(x, fill, top, bottom, left, right)
    return windows._windows(x, window, partition)


def _map(out: Tensor, q: Tensor, window: tuple[int, int], partition: str, pad_offset: tuple[int, int]) -> Tensor:
    """(B, rows, columns, heads, T, D) -> (B, H, W, heads * D)."""
    top, left = pad_offset
    out = windows._unwindows(out, window, partition)
    return out[:, top : top + q.shape[1], left : left + q.shape[2]].flatten(3)


_OTHERS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("window_attention", "sdpa"): window_sdpa,
    ("window_attention", "flex"): window_flex,
    ("routing_attention", "sdpa"): routing_sdpa,
}
