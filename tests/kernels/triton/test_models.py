"""Every family with kernels in it: the reference's features and gradients, forward and backward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import vertebra
import yaml
from torch import Tensor, nn
from vertebra.kernels import dispatch

CARDS = yaml.safe_load((Path(vertebra.__file__).parent / "model_cards" / "cards.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", [pytest.param((64, 64), marks=pytest.mark.all), (35, 45)])
def test_kernels_change_no_model(
    family_model: str,
    size: tuple[int, int],
    device: str,
    build: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(family_model).eval()
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
    assert launched == set(CARDS[family_model.partition("_")[0]]["kernels"])
