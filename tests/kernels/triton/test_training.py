"""A few steps of training with kernels and without: the same curve."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from vertebra.kernels import _triton

on_gpu = torch.cuda.is_available() and not _triton.INTERPRETED
STEPS = 20 if on_gpu else 2


def losses(model: nn.Module, device: str, precision: torch.dtype) -> list[float]:
    """Cross-entropy of a few steps of AdamW on images that carry their class in their colour."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    curve = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        label = torch.randint(3, (8 if on_gpu else 2,), generator=generator)
        x = 0.5 * torch.randn(len(label), 3, 64, 64, generator=generator)
        x[torch.arange(len(label)), label] += 1
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            loss = functional.cross_entropy(model(x.to(device)), label.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_curve_is_the_same(
    family_model: str,
    precision: torch.dtype,
    device: str,
    build: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not on_gpu and (family_model, precision) != ("litv2_small", torch.float32):
        pytest.skip("takes minutes in Triton's interpreter")
    curves = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("VERTEBRA_KERNELS", backend)
        torch.manual_seed(0)
        curves.append(torch.tensor(losses(build(family_model, drop_path_rate=0.0), device, precision)))
    assert curves[0].isfinite().all()
    torch.testing.assert_close(*curves, rtol=0.02 if precision == torch.float32 else 0.1, atol=0.02)
