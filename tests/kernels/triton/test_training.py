"""A few steps of training with kernels and without: the same curve."""

from typing import Any

import pytest
import timm
import torch
from torch.nn import functional
from vertebra.kernels import _triton

FAMILIES = {
    "biformer_tiny": {},
    "cswin_tiny": {},
    "davit_tiny_fused": {},
    "l2vit_tiny": {"depths": (2, 2, 2, 2)},
    "litv2_small": {},
    "maxvit_pico_rw_256_fused": {},
    "shvit_s1_fused": {},
    "transnext_micro": {},
    "van_b0": {},
}
on_gpu = torch.cuda.is_available() and not _triton.INTERPRETED
STEPS = 20 if on_gpu else 2


def losses(name: str, device: str, options: dict[str, Any], precision: torch.dtype) -> list[float]:
    """Cross-entropy of a few steps of AdamW on images that carry their class in their colour."""
    torch.manual_seed(0)
    stages = len(timm.create_model(name, device="meta").stages)
    model = timm.create_model(name, num_classes=3, drop_path_rate=0.0, **{"depths": (1,) * stages} | options).to(device)
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
@pytest.mark.parametrize("name", FAMILIES)
def test_the_curve_is_the_same(name: str, precision: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not on_gpu and (name, precision) != ("litv2_small", torch.float32):
        pytest.skip("takes minutes in Triton's interpreter")
    curves = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("VERTEBRA_KERNELS", backend)
        curves.append(torch.tensor(losses(name, device, FAMILIES[name], precision)))
    assert curves[0].isfinite().all()
    torch.testing.assert_close(*curves, rtol=0.02 if precision == torch.float32 else 0.1, atol=0.02)
