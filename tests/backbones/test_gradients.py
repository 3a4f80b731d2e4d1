"""Gradients of each family, in float64: against finite differences, in halves of a batch, and through a compiler.

That gradient checkpointing changes none stands in test_contract.py.
"""

from collections.abc import Callable, Sequence

import pytest
import timm
import torch
from torch import Tensor, nn
from vertebra.backbones import model_names

Build = Callable[..., nn.Module]

FAMILIES = sorted({timm.model_entrypoint(name).__module__: name for name in reversed(model_names())}.values())
STEPS = (1e-7, 1e-8, 1e-9, 1e-10)
"""Of a finite difference: so small that between its two ends no ReLU turns over and BiFormer chooses the same regions,
since a choice has no slope. The smaller a step, the more is lost to rounding. A wrong gradient agrees with none."""


each_family = pytest.mark.parametrize("one", FAMILIES)  # `family` stands for every name in `make test-all`


def build(small: Build, name: str) -> nn.Module:
    """A small model in float64 and eval mode, no weight of which is zero, and whose BatchNorms know its maps.

    A BatchNorm that starts at zero would hide all gradients behind it, one with strange statistics would shrink them,
    and a deformable convolution whose offsets are zero samples at pixels, where bilinear interpolation has a kink.
    """
    depths = (1, 1, 2, 1) if name.startswith("l2vit") else (1,) * len(small(name, device="meta").stages)
    model = small(name, num_classes=3, dtype=torch.float64, depths=depths)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn_like(value) / (value[0].numel() if value.ndim > 1 else 1) ** 0.5
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            model.train()(images(8))
    return model.eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 48, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """A mean over the images in which the classes count differently."""
    logits = model(x)
    return (logits * torch.linspace(0.5, 2, logits.shape[1], dtype=x.dtype)).square().sum(1).mean()


def gradients_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(model, x), list(model.parameters())))


def measured(model: nn.Module, x: Tensor) -> Tensor:
    """What is differentiated twice: a logarithm, so that rounding costs as many digits whatever the loss is."""
    return loss_of(model, x).log()


@torch.no_grad()
def slope(model: nn.Module, x: Tensor, values: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> Tensor:
    """The central difference of `measured` as `values` move along `direction`; they are put back."""
    kept, losses = [value.clone() for value in values], []
    for sign in (1, -1):
        for value, start, way in zip(values, kept, direction, strict=True):
            torch.add(start, way, alpha=sign * step, out=value)
        losses.append(measured(model, x))
    for value, start in zip(values, kept, strict=True):
        value.copy_(start)
    return (losses[0] - losses[1]) / (2 * step)


def agrees(
    model: nn.Module, x: Tensor, values: Sequence[Tensor], gradients: Sequence[Tensor], least: float | Tensor
) -> bool:
    """Whether the gradients give the slope along a random direction in which each tensor has the same share.

    `least`: gradients of a smaller norm have a smaller share, for want of digits.
    """
    direction = [
        torch.randn_like(value) / max(gradient.norm(), least) for value, gradient in zip(values, gradients, strict=True)
    ]
    expected = sum((way * gradient).sum() for way, gradient in zip(direction, gradients, strict=True))
    return any(abs(slope(model, x, values, direction, step) - expected) <= 1e-6 * len(values) ** 0.5 for step in STEPS)


@each_family
def test_gradients_agree_with_finite_differences(small: Build, one: str) -> None:
    model, x = build(small, one), images()
    values = [x, *model.parameters()]
    gradients = torch.autograd.grad(measured(model, x.requires_grad_()), values)
    assert agrees(model, x, values[:1], gradients[:1], 0.0)
    assert agrees(model, x, values[1:], gradients[1:], 1e-2 * max(gradient.norm() for gradient in gradients[1:]))


@pytest.mark.all
@each_family
def test_the_gradient_of_each_weight_agrees_with_finite_differences(small: Build, one: str) -> None:
    model, x = build(small, one), images(1)
    gradients = torch.autograd.grad(measured(model, x), list(model.parameters()))
    least = 1e-4 * max(gradient.norm() for gradient in gradients)
    for (key, value), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert agrees(model, x, [value], [gradient], least), key


@each_family
def test_the_gradients_of_half_batches_add_up_to_that_of_the_whole(small: Build, one: str) -> None:
    model, x = build(small, one), images()
    halves = [gradients_of(model, half) for half in x.split(1)]
    for whole, first, second in zip(gradients_of(model, x), *halves, strict=True):
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-9, atol=1e-11)


@pytest.mark.all  # test_compilers.py has two families in float32
@each_family
def test_compiling_changes_no_gradient(small: Build, one: str) -> None:
    torch.compiler.reset()
    model, x = build(small, one), images()
    plain = gradients_of(model, x)
    compiled = gradients_of(torch.compile(model, backend="aot_eager", fullgraph=True), x)
    for given, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-11)
