"""Depthwise convolutions: the fast way against the reference, and the reference against shifted products."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap
from vertebra.kernels.depthwise_conv import depthwise_conv

DIM = 4


def drawn(*shape: int, channels_last: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    layout = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()


def with_gradients(tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """The result and the gradients of `tensors`: x, weight, and the bias if there is one."""
    out = depthwise_conv(*tensors, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


SIZES = [(9, 11), (8, 5), (5, 2), (1, 1), (1, 12)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
def test_eager_is_the_reference_and_so_are_its_gradients(kernel: int, dilation: int, size: tuple[int, int]) -> None:
    for channels_last, bias in product((False, True), repeat=2):
        tensors = [drawn(2, DIM, *size, channels_last=channels_last), drawn(DIM, 1, kernel, kernel)]
        tensors += [drawn(DIM)] * bias
        given, expected = (
            with_gradients(tensors, dilation=dilation, backend=backend) for backend in ("eager", "reference")
        )
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("trains", [True, False])
def test_activation_gate_and_residual_follow_the_convolution_in_this_order(trains: bool, backend: str) -> None:
    x, weight, bias = drawn(2, DIM, 6, 5), drawn(DIM, 1, 5, 5), drawn(DIM)
    gate, residual = drawn(2, DIM, 6, 5), drawn(2, DIM, 6, 5)
    with torch.set_grad_enabled(trains):
        plain = depthwise_conv(x, weight, bias, backend=backend)
        full = depthwise_conv(x, weight, bias, activation="gelu", gate=gate, residual=residual, backend=backend)
        torch.testing.assert_close(full, torch.nn.functional.gelu(plain) * gate + residual)


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("dilation", [1, 3])
@torch.no_grad()
def test_each_tap_weighs_the_map_moved_by_its_place_in_the_kernel(dilation: int, backend: str) -> None:
    x, weight, bias = drawn(2, DIM, 7, 6), drawn(DIM, 1, 5, 5), drawn(DIM)
    reach = 2 * dilation
    wide = torch.nn.functional.pad(x, [reach] * 4)
    expected = bias[:, None, None].expand_as(x).clone()
    for i, j in product(range(5), repeat=2):
        moved = wide[:, :, i * dilation : i * dilation + 7, j * dilation : j * dilation + 6]
        expected += weight[:, :, i, j, None] * moved
    torch.testing.assert_close(depthwise_conv(x, weight, bias, dilation, backend=backend), expected)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 3])
def test_views_with_other_strides_are_read_as_they_are(kernel: int, dilation: int) -> None:
    tokens, weight = drawn(2, 9, 10, 2 * DIM), drawn(DIM, 1, kernel, kernel)
    view = tokens[:, 1:, ::2, DIM:].permute(0, 3, 1, 2)
    copy = view.detach().contiguous().requires_grad_()
    given, expected = (with_gradients([x, weight], dilation=dilation) for x in (view, copy))
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_map_with_its_channels_last_gives_one_and_so_does_its_gradient(kernel: int, dilation: int) -> None:
    x = drawn(2, DIM, 9, 10, channels_last=True, dtype=torch.float32)
    out, grad_x, _ = with_gradients([x, drawn(DIM, 1, kernel, kernel, dtype=torch.float32)], dilation=dilation)
    assert out.stride(1) == grad_x.stride(1) == 1


@pytest.mark.parametrize("dilation", [1, 3])
def test_an_empty_batch_gives_an_empty_map_and_gradients_of_zero(dilation: int) -> None:
    tensors = [drawn(0, DIM, 8, 9, dtype=torch.float32), drawn(DIM, 1, 7, 7, dtype=torch.float32)]
    out, _, grad_weight = with_gradients(tensors, dilation=dilation)
    assert out.shape == (0, DIM, 8, 9)
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))


def test_second_and_forward_derivatives_of_wide_kernels_are_right() -> None:
    tensors = drawn(2, 2, 4, 5), drawn(2, 1, 5, 5), drawn(2)
    assert torch.autograd.gradcheck(depthwise_conv, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(depthwise_conv, tensors, fast_mode=True)


def test_function_transforms_of_wide_kernels_agree_with_the_reference() -> None:
    x, weight = drawn(3, 2, 4, 5).detach(), drawn(2, 1, 5, 5).detach()

    def results(backend: str) -> list[Any]:
        def energy(image: Tensor, weight: Tensor) -> Tensor:
            return depthwise_conv(image[None], weight, activation="gelu", backend=backend).square().sum()

        return [
            vmap(grad(energy, 1), (0, None))(x, weight),
            jvp(lambda w: energy(x[0], w), (weight,), (torch.ones_like(weight),)),
            hessian(energy, 1)(x[0], weight),
        ]

    torch.testing.assert_close(results("eager"), results("reference"))


def test_mixed_precision_trains_wide_kernels() -> None:
    x, weight = (drawn(*shape, dtype=torch.float32) for shape in ((2, DIM, 9, 9), (DIM, 1, 7, 7)))
    exact = with_gradients([x, weight])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = with_gradients([x, weight])
    assert mixed[0].dtype == torch.bfloat16
    for given, expected in zip(mixed, exact, strict=True):
        torch.testing.assert_close(given.float(), expected, rtol=0.05, atol=0.05 * expected.std().item())


@pytest.mark.parametrize("dilation", [1, 3])
@torch.no_grad()
def test_graphs_hold_the_convolution_itself(dilation: int) -> None:
    class Conv(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return depthwise_conv(x, weight, dilation=dilation)

    weight = torch.randn(DIM, 1, 7, 7, requires_grad=True)
    program = torch.export.export(Conv(), (torch.randn(1, DIM, 8, 8), weight))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.conv2d.default"]


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_scripted_convolution_is_the_same(dilation: int) -> None:
    x, weight, gate = (drawn(*shape, dtype=torch.float32) for shape in ((2, DIM, 9, 8), (DIM, 1, 5, 5), (2, DIM, 9, 8)))
    scripted = torch.jit.script(depthwise_conv)
    torch.testing.assert_close(
        scripted(x, weight, None, dilation, "gelu", gate, x), depthwise_conv(x, weight, None, dilation, "gelu", gate, x)
    )


def test_an_unknown_activation_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"activation is 'relu'.*'gelu'"):
        depthwise_conv(drawn(1, DIM, 5, 5), drawn(DIM, 1, 3, 3), activation="relu")
