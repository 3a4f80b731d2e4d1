"""Every family with kernels in it: the reference's features and gradients, forward and backward."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import vertebra
import yaml
from torch import Tensor
from vertebra.kernels import dispatch

CARDS = yaml.safe_load((Path(vertebra.__file__).parent / "model_cards" / "cards.yml").read_text(encoding="utf-8"))

MODELS = {
    "biformer_tiny": {"n_win": 3},
    "cswin_tiny": {},
    "davit_tiny_fused": {},
    "l2vit_tiny": {"depths": (2, 2, 2, 2)},  # windows and linear attention take turns
    "litv2_small": {},
    "maxvit_pico_rw_256_fused": {},
    "shvit_s1_fused": {},
    "transnext_micro": {},
    "van_b0": {},
}


@pytest.mark.parametrize("size", [(64, 64), (35, 45)])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_change_no_model(
    name: str, size: tuple[int, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = len(timm.create_model(name, device="meta").stages)
    options: dict[str, Any] = {"depths": (1,) * stages} | MODELS[name]
    model = timm.create_model(name, num_classes=3, **options).to(device).eval()
    x = torch.randn(1, 3, *size, device=device)

    def run() -> list[Tensor]:
        out = model(x.requires_grad_())
        out.square().sum().backward()
        gradients = [x.grad, *(p.grad for p in model.parameters())]
        model.zero_grad()
        x.grad = None
        return [out, *(g for g in gradients if g is not None)]

    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    expected = run()
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    launched, decide = set(), dispatch._decide

    def noted(operator: str, *rest: Any) -> dispatch.Decision:
        decision = decide(operator, *rest)
        launched.update([operator] if decision.backend == "triton" else [])
        return decision

    monkeypatch.setattr(dispatch, "_decide", noted)
    for a, b in zip(run(), expected, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6
    assert launched == set(CARDS[name.partition("_")[0]]["kernels"])
