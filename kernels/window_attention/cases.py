"""`window_attention` at the sizes that models give it, for benchmarks and compilations: name -> its arguments."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_HEAD_DIM = 32


def _arguments(
    batch: int,
    size: tuple[int, int],
    heads: int,
    window: tuple[int, int],
    device: str | torch.device,
    dtype: torch.dtype,
    partition: str = "block",
    bias: bool = False,
    pad: bool = False,
    lepe: bool = False,
    cross: tuple[int, int] | None = None,
) -> dict[str, Any]:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, requires_grad=True)

    dim = heads * _HEAD_DIM
    packed = torch.randn(batch, *size, 3 * dim, device=device, dtype=dtype, requires_grad=True)
    q, k, v = packed.unflatten(-1, (3, heads, -1)).unbind(3)
    return {
        "q": q,
        "k": k,
        "v": v,
        "window": window,
        "partition": partition,
        "bias_table": drawn(heads, 2 * window[0] - 1, 2 * window[1] - 1) if bias else None,
        "pad": drawn(3, heads, _HEAD_DIM) if pad else None,
        "pad_offset": (0, (-size[1] % window[1]) // 2) if cross else (0, 0),
        "lepe_weight": drawn(dim, 1, 3, 3) if lepe else None,
        "lepe_bias": drawn(dim) if lepe else None,
        "cross_window": cross,
        "cross_offset": ((-size[0] % cross[0]) // 2, 0) if cross else (0, 0),
    }


_LARGE = "2 x 800x1344"
_small = partial(partial, _arguments, 128)
_large = partial(partial, _arguments, 2)

CASES: dict[str, Callable[[str | torch.device, torch.dtype], dict[str, Any]]] = {
    "davit_tiny stage 1, 128 x 224": _small((56, 56), 3, (7, 7), pad=True),
    "davit_tiny stage 2, 128 x 224": _small((28, 28), 6, (7, 7), pad=True),
    "davit_tiny stage 3, 128 x 224": _small((14, 14), 12, (7, 7), pad=True),
    "davit_tiny stage 4, 128 x 224": _small((7, 7), 24, (7, 7), pad=True),
    f"davit_tiny stage 1, {_LARGE}": _large((200, 336), 3, (7, 7), pad=True),
    f"davit_tiny stage 3, {_LARGE}": _large((50, 84), 12, (7, 7), pad=True),
    "l2vit_base_384 stage 1, 128 x 384": _small((96, 96), 3, (12, 12), pad=True),
    "maxvit_tiny block, stage 1, 128 x 224": _small((56, 56), 2, (7, 7), bias=True, pad=True),
    "maxvit_tiny grid, stage 1, 128 x 224": _small((56, 56), 2, (7, 7), partition="grid", bias=True, pad=True),
    "maxvit_tiny grid, stage 3, 128 x 224": _small((14, 14), 8, (7, 7), partition="grid", bias=True, pad=True),
    "maxvit_tiny block, stage 1, 32 x 384": partial(_arguments, 32, (96, 96), 2, (12, 12), bias=True, pad=True),
    "maxvit_tiny grid, stage 1, 32 x 512": partial(
        _arguments, 32, (128, 128), 2, (16, 16), partition="grid", bias=True, pad=True
    ),
    f"maxvit_tiny grid, stage 1, {_LARGE}": _large((200, 336), 2, (7, 7), partition="grid", bias=True, pad=True),
    "cswin_tiny stage 1, 128 x 224": _small((56, 56), 2, (56, 1), lepe=True, cross=(1, 56)),
    "cswin_tiny stage 2, 128 x 224": _small((28, 28), 4, (28, 2), lepe=True, cross=(2, 28)),
    "cswin_tiny stage 3, 128 x 224": _small((14, 14), 8, (14, 7), lepe=True, cross=(7, 14)),
    f"cswin_tiny stage 1, {_LARGE}": _large((200, 336), 2, (200, 1), lepe=True, cross=(1, 336)),
    f"cswin_tiny stage 3, {_LARGE}": _large((50, 84), 8, (50, 7), lepe=True, cross=(7, 84)),
    "litv2_small stage 3, 128 x 224": _small((14, 14), 2, (2, 2), pad=True),
    f"litv2_small stage 3, {_LARGE}": _large((50, 84), 2, (2, 2), pad=True),
}
