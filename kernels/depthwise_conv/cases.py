"""`depthwise_conv` at the shapes of our models, for benchmarks and for kernels that are only compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["CASES"]


def _inputs(
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    size: tuple[int, int, int, int],
    kernel: int,
    dilation: int = 1,
    activation: str | None = None,
    gate: bool = False,
    residual: str = "",
    contiguous: bool = False,
) -> dict[str, Any]:
    """`size`: B, H, W, C. `residual`: "" for none, "x" for x itself, "own" for another map."""
    batch, height, width, channels = size

    def drawn(parts: int = 1) -> list[Tensor]:
        """Parts of one projection's output."""
        if contiguous:
            return list(torch.randn(batch, parts * channels, height, width, **on).requires_grad_().chunk(parts, 1))
        tokens = torch.randn(batch, height, width, parts * channels, **on).requires_grad_()
        return list(tokens.permute(0, 3, 1, 2).chunk(parts, 1))

    on: dict[str, Any] = {"device": device, "dtype": dtype}
    x, *others = drawn(2 if gate else 1)
    return {
        "x": x,
        "weight": torch.randn(channels, 1, kernel, kernel, device=device).div_(kernel).requires_grad_(),
        "bias": torch.randn(channels, device=device).requires_grad_(),
        "dilation": dilation,
        "activation": activation,
        "gate": others[0] if gate else None,
        "residual": {"": None, "x": x, "own": None if residual != "own" else drawn()[0]}[residual],
    }


def _case(
    batch: int, height: int, width: int, channels: int, kernel: int, **options: Any
) -> Callable[..., dict[str, Any]]:
    return partial(_inputs, size=(batch, height, width, channels), kernel=kernel, **options)


CASES: dict[str, Callable[[str | torch.device, torch.dtype], dict[str, Any]]] = {
    "van_b2 near, stage 1, 128 x 224": _case(128, 56, 56, 64, 5),
    "van_b2 far, stage 1, 128 x 224": _case(128, 56, 56, 64, 7, dilation=3),
    "van_b2 far, stage 1, contiguous, 128 x 224": _case(128, 56, 56, 64, 7, dilation=3, contiguous=True),
    "van_b2 MLP, stage 1, 128 x 224": _case(128, 56, 56, 512, 3, activation="gelu"),
    "van_b2 near, stage 3, 128 x 224": _case(128, 14, 14, 320, 5),
    "van_b2 far, stage 3, 128 x 224": _case(128, 14, 14, 320, 7, dilation=3),
    "van_b2 far, stage 4, 128 x 224": _case(128, 7, 7, 512, 7, dilation=3),
    "l2vit_tiny conv1, stage 1, 128 x 224": _case(128, 56, 56, 96, 7, activation="gelu"),
    "l2vit_tiny conv2, stage 1, 128 x 224": _case(128, 56, 56, 96, 7),
    "l2vit_tiny conv1, stage 3, 128 x 224": _case(128, 14, 14, 384, 7, activation="gelu"),
    "transnext_tiny MLP, stage 1, 128 x 224": _case(128, 56, 56, 384, 3, activation="gelu", gate=True),
    "transnext_tiny MLP, stage 3, 128 x 224": _case(128, 14, 14, 768, 3, activation="gelu", gate=True),
    "davit_tiny position, stage 1, 128 x 224": _case(128, 56, 56, 96, 3, residual="x"),
    "davit_tiny position, stage 1, contiguous, 128 x 224": _case(128, 56, 56, 96, 3, residual="x", contiguous=True),
    "davit_tiny position, stage 3, 128 x 224": _case(128, 14, 14, 384, 3, residual="x"),
    "biformer_base position, stage 1, 128 x 224": _case(128, 56, 56, 96, 3, residual="x"),
    "biformer_base LePE, stage 1, 128 x 224": _case(128, 56, 56, 96, 5, residual="own"),
    "biformer_base LePE, stage 3, 128 x 224": _case(128, 14, 14, 384, 5, residual="own"),
    "litv2_small MLP, stage 1, 128 x 224": _case(128, 56, 56, 384, 3),
    "litv2_small MLP, stage 3, 128 x 224": _case(128, 14, 14, 1536, 3),
    "cswin_tiny LePE, stage 4, 128 x 224": _case(128, 7, 7, 512, 3, residual="own"),
    "van_b2 near, stage 1, 2 x 800x1344": _case(2, 200, 336, 64, 5),
    "van_b2 far, stage 1, 2 x 800x1344": _case(2, 200, 336, 64, 7, dilation=3),
    "van_b2 MLP, stage 1, 2 x 800x1344": _case(2, 200, 336, 512, 3, activation="gelu"),
    "l2vit_tiny conv1, stage 3, 2 x 800x1344": _case(2, 50, 84, 384, 7, activation="gelu"),
    "transnext_tiny MLP, stage 1, 2 x 800x1344": _case(2, 200, 336, 384, 3, activation="gelu", gate=True),
    "davit_tiny position, stage 1, 2 x 800x1344": _case(2, 200, 336, 96, 3, residual="x"),
}
