"""A linear layer by oneDNN gives what PyTorch's gives, and steps aside wherever something would not see it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from vertebra.kernels._linear import fuses, linear

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")


def drawn(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(*shape, 24), torch.randn(40, 24), torch.randn(40)


@pytest.mark.parametrize("shape", [(7,), (2, 5), (2, 3, 5), (0, 5), (1,)], ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_results_are_pytorchs(shape: tuple[int, ...], gelu: bool, biased: bool) -> None:
    x, weight, bias = drawn(*shape)
    expected = functional.linear(x, weight, bias if biased else None)
    expected = functional.gelu(expected) if gelu else expected
    torch.testing.assert_close(linear(x, weight, bias if biased else None, gelu), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_views_with_any_strides_are_taken() -> None:
    x, weight, bias = drawn(6, 5)
    for view in (x.transpose(0, 1), x[:, ::2], x.expand(3, 6, 5, 24)):
        torch.testing.assert_close(linear(view, weight, bias), functional.linear(view, weight, bias))


@needs_onednn
def test_inference_in_float32_is_fused_and_training_is_not() -> None:
    x, weight, _ = drawn(3)
    assert fuses(x, weight)
    assert not fuses(x, weight.requires_grad_())
    with torch.no_grad():
        assert fuses(x, weight)


def test_gradients_flow() -> None:
    x, weight, bias = (value.requires_grad_() for value in drawn(3))
    linear(x, weight, bias, gelu=True).sum().backward()
    given = [value.grad.clone() for value in (x, weight, bias)]
    for value in (x, weight, bias):
        value.grad = None
    functional.gelu(functional.linear(x, weight, bias)).sum().backward()
    torch.testing.assert_close(given, [value.grad for value in (x, weight, bias)])


def test_a_bias_that_alone_is_trained_receives_its_gradient() -> None:
    x, weight, bias = drawn(3)
    linear(x, weight, bias.requires_grad_()).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_theirs(dtype: torch.dtype) -> None:
    x, weight, bias = (value.to(dtype) for value in drawn(3))
    assert not fuses(x, weight)
    assert linear(x, weight, bias).dtype == dtype


@torch.no_grad()
def test_autocast_decides_the_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*drawn(3)).dtype == torch.bfloat16


@torch.no_grad()
def test_transformations_pass_through() -> None:
    x, weight, bias = drawn(4)
    each = torch.func.vmap(lambda row: linear(row, weight, bias))(x)
    torch.testing.assert_close(each, functional.linear(x, weight, bias))
    _, tangent = torch.func.jvp(lambda value: linear(value, weight, bias), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, functional.linear(torch.ones_like(x), weight))


@torch.no_grad()
def test_whoever_counts_operations_counts_them() -> None:
    with FlopCounterMode(display=False) as counter:
        linear(*drawn(4))
    assert counter.get_total_flops() == 2 * 4 * 24 * 40


@torch.no_grad()
def test_a_weight_of_another_class_is_asked_itself() -> None:
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x, weight, bias = drawn(3)
    linear(x, weight.as_subclass(Watched), bias)
    assert functional.linear in seen


@torch.no_grad()
def test_a_script_and_an_export_are_plain() -> None:
    x, weight, bias = drawn(3)
    expected = functional.gelu(functional.linear(x, weight, bias))
    torch.testing.assert_close(torch.jit.script(linear)(x, weight, bias, True), expected)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear(x, weight, bias, gelu=True)

    program = torch.export.export(Layer(), (x,))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
