"""Depthwise convolutions on Triton, with what follows them, in every layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from vertebra.kernels import dispatch
from vertebra.kernels._triton import INTERPRETED
from vertebra.kernels.depthwise_conv import depthwise_conv, triton

LAYOUTS = {"last": torch.channels_last, "contiguous": torch.contiguous_format}
EVERYTHING = ("x", "weight", "bias", "gate", "residual")


@pytest.fixture(autouse=True)
def _tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_SCALE", 1)


def drawn(
    kernel: int, size: tuple[int, ...] = (2, 5, 6, 7), names: tuple[str, ...] = EVERYTHING, layout: str = "last"
) -> dict[str, Tensor]:
    """The tensors that learn, in float64; `size` is B, C, H, W."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (size[1], 1, kernel, kernel), "bias": (size[1],)}
    leaves = {name: torch.randn(shapes.get(name, size), dtype=torch.float64) for name in names}
    return {k: x if k in shapes else x.contiguous(memory_format=LAYOUTS[layout]) for k, x in leaves.items()}


def with_gradients(leaves: dict[str, Tensor], backend: str = "triton", **options: Any) -> list[Tensor]:
    """The result and the gradients of the leaves, in their order."""
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    out = depthwise_conv(**leaves, **options, backend=backend)
    ahead = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad(out, list(leaves.values()), ahead)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (7, 3)])
def test_every_kernel_with_all_that_follows(kernel: int, dilation: int, layout: str, same: Callable[..., None]) -> None:
    leaves = drawn(kernel, (1, 5, 6, 7), layout=layout)
    same(depthwise_conv, leaves, lambda own: {**own, "dilation": dilation, "activation": "gelu"}, torch.float32)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (7, 1)])
def test_every_kernel_with_and_without_gaps(kernel: int, dilation: int, same: Callable[..., None]) -> None:
    leaves = drawn(kernel, (1, 5, 6, 7), ("x", "weight"))
    same(depthwise_conv, leaves, lambda own: {**own, "dilation": dilation}, torch.float32)


@pytest.mark.parametrize(("kernel", "dtype"), [(3, torch.float16), (3, torch.bfloat16), (5, torch.float16)])
def test_16_bits(kernel: int, dtype: torch.dtype, same: Callable[..., None]) -> None:
    same(depthwise_conv, drawn(kernel, (1, 5, 6, 7)), lambda own: {**own, "activation": "gelu"}, dtype)


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("names", [(), ("bias",), ("gate",), ("residual",), ("bias", "gate", "residual")], ids=str)
def test_whatever_follows(names: tuple[str, ...], activation: str | None, same: Callable[..., None]) -> None:
    leaves = drawn(3, names=("x", "weight", *names))
    same(depthwise_conv, leaves, lambda own: {**own, "activation": activation}, torch.float32)


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_x_itself_as_the_residual(layout: str, activation: str | None, same: Callable[..., None]) -> None:
    leaves = drawn(3, names=("x", "weight", "bias"), layout=layout)
    same(depthwise_conv, leaves, lambda own: {**own, "residual": own["x"], "activation": activation}, torch.float32)


@pytest.mark.parametrize(("layout", "channels", "width"), [("last", 70, 23), ("contiguous", 10, 70)])
def test_more_pixels_and_channels_than_a_tile(
    layout: str, channels: int, width: int, same: Callable[..., None]
) -> None:
    leaves = drawn(3, (1, channels, 5, width), names=("x", "weight", "bias"), layout=layout)
    same(depthwise_conv, leaves, lambda own: own, torch.float32)


def test_programs_that_go_through_several_tiles(same: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_PROGRAMS", 2)
    same(depthwise_conv, drawn(3, (1, 5, 6, 31), names=("x", "weight", "bias")), lambda own: own, torch.float32)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)], ids=str)
def test_maps_that_are_narrower_than_the_kernel(size: tuple[int, int], same: Callable[..., None]) -> None:
    leaves = drawn(3, (2, 3, *size), names=("x", "weight", "bias"))
    same(depthwise_conv, leaves, lambda own: {**own, "dilation": 4}, torch.float32)


@pytest.mark.parametrize("layout", ["a part of the channels", "every other pixel", "transposed", "batch last"])
def test_any_strides(layout: str, same: Callable[..., None]) -> None:
    def views(leaves: dict[str, Tensor]) -> dict[str, Any]:
        x, gate, residual = leaves["maps"].unbind(0)  # (B, H, W, C)
        if layout == "a part of the channels":
            x, gate, residual = torch.cat([x, gate, residual], -1).permute(0, 3, 1, 2).chunk(3, 1)
        elif layout == "every other pixel":
            x, gate, residual = (
                m.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2].permute(0, 3, 1, 2)
                for m in (x, gate, residual)
            )
        elif layout == "transposed":
            x, gate, residual = x.permute(0, 3, 2, 1), gate.permute(0, 3, 2, 1), residual.permute(0, 3, 2, 1)
        else:
            moved = (m.permute(1, 2, 3, 0).contiguous() for m in (x, gate, residual))
            x, gate, residual = (m.permute(3, 2, 0, 1) for m in moved)
        return {"x": x, "weight": leaves["weight"], "gate": gate, "residual": residual, "activation": "gelu"}

    leaves = {"maps": torch.randn(3, 2, 5, 6, 4, dtype=torch.float64), **drawn(3, (2, 4, 5, 6), ("weight",))}
    same(depthwise_conv, leaves, views, torch.float32)


@pytest.mark.parametrize("residual", [False, True])
def test_a_gradient_that_is_not_contiguous(residual: bool, device: str) -> None:
    x, weight = (m.float().to(device).requires_grad_() for m in drawn(3, names=("x", "weight")).values())
    results = []
    for backend in ("triton", "reference"):
        out = depthwise_conv(x, weight, residual=x if residual else None, backend=backend)
        ahead = torch.arange(2 * 7 * 6, device=device, dtype=out.dtype).view(2, 1, 7, 6).transpose(2, 3)
        results.append(torch.autograd.grad(out, (x, weight), ahead.expand_as(out)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_gradients_lie_as_x_does(layout: str, device: str) -> None:
    leaves = {k: m.float().to(device) for k, m in drawn(3, layout=layout).items()}
    out, dx, _, _, dgate, dresidual = with_gradients(leaves, activation="gelu")
    for m in (out, dx, dgate):
        assert m.is_contiguous(memory_format=LAYOUTS[layout])
    assert dresidual.is_contiguous()  # nothing happens to the gradient of the result on its way


def test_gelu_is_the_exact_one_to_the_last_digits_of_float32(device: str) -> None:
    x = torch.linspace(-12, 12, 2048, device=device).view(1, 8, 8, 32).permute(0, 3, 1, 2).requires_grad_()
    weight = torch.zeros(32, 1, 3, 3, device=device)
    weight[:, :, 1, 1] = 1
    out = depthwise_conv(x, weight, activation="gelu", backend="triton")
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double().requires_grad_()
    expected = functional.gelu(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=3e-7)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("names", [("x", "weight"), ("x", "weight", "bias", "residual")], ids=str)
def test_autocast_gives_the_dtypes_that_plain_pytorch_gives(names: tuple[str, ...], device: str) -> None:
    leaves = {k: m.float().to(device) for k, m in drawn(3, names=names).items()}
    with torch.autocast(device, torch.bfloat16):
        ours, plain = (with_gradients(leaves, backend) for backend in ("triton", "eager"))
    assert [m.dtype for m in ours] == [m.dtype for m in plain]
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()


@pytest.mark.skipif(not INTERPRETED, reason="kernels take float64 in the interpreter only")
@pytest.mark.parametrize("names", [("x", "weight"), EVERYTHING], ids=str)
def test_derivatives_of_float64(names: tuple[str, ...]) -> None:
    leaves = drawn(3, (1, 2, 3, 4), names)

    def run(*values: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(leaves, values, strict=True))
        return depthwise_conv(**given, activation="gelu" if "gate" in given else None, backend="triton")

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaves.values()], fast_mode=True)


def test_it_is_an_operator_that_compilers_understand(device: str) -> None:
    leaves = {k: m.float().to(device).requires_grad_() for k, m in drawn(3, (1, 2, 3, 4)).items()}
    depthwise_conv(**leaves, backend="triton")  # registers it
    x, weight, bias, gate, residual = leaves.values()
    maps = (m.permute(0, 2, 3, 1) for m in (x, gate))
    given = (next(maps), weight, bias, next(maps), residual.permute(0, 2, 3, 1).detach())
    torch.library.opcheck(torch.ops.vertebra.depthwise_conv, (*given, 1, True, False, True, torch.float32))


def test_a_compiled_graph_is_whole_and_hands_the_residual_its_gradient(device: str) -> None:
    leaves = {k: m.float().to(device) for k, m in drawn(3, names=("x", "weight", "residual")).items()}
    expected = with_gradients(leaves)

    def run(*values: Tensor) -> Tensor:
        x, weight, residual = values
        return depthwise_conv(x, weight, residual=residual, backend="triton")

    inputs = [m.requires_grad_() for m in leaves.values()]
    out = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    ahead = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
    torch.testing.assert_close([out, *torch.autograd.grad(out, inputs, ahead)], expected)


def test_the_same_bits_every_time(device: str) -> None:
    leaves = {k: m.float().to(device) for k, m in drawn(3).items()}
    first, second = (with_gradients(leaves, activation="gelu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_empty_batch_gives_an_empty_map_and_gradients_of_zero(device: str) -> None:
    leaves = {k: m.float().to(device) for k, m in drawn(3, (0, 3, 4, 5), ("x", "weight", "bias")).items()}
    out, _, dweight, dbias = with_gradients(leaves)
    assert out.shape == (0, 3, 4, 5)
    assert not dweight.any()
    assert not dbias.any()


@pytest.mark.parametrize(
    ("weight", "gate", "reason"),
    [
        ((3, 1, 9, 9), (1, 3, 4, 5), "weight is 9 wide; the kernel takes 3, 5 and 7"),
        ((3, 1, 4, 4), (1, 3, 4, 5), "weight is 4 wide"),
        ((3, 1, 3, 5), (1, 3, 4, 5), r"weight is \(3, 1, 3, 5\) for 3 channels"),
        ((3, 1, 3, 3), (1, 1, 4, 5), r"gate is \(1, 1, 4, 5\) and x \(1, 3, 4, 5\)"),
    ],
    ids=["wide", "even", "not square", "one gate for all"],
)
def test_what_it_cannot_take_is_refused_in_a_sentence(
    weight: tuple[int, ...], gate: tuple[int, ...], reason: str, device: str
) -> None:
    x, taps, by = (torch.zeros(shape, device=device) for shape in ((1, 3, 4, 5), weight, gate))
    with pytest.raises(dispatch.BackendError, match=reason):
        depthwise_conv(x, taps, gate=by, backend="triton")


def test_a_result_may_change_in_place(device: str) -> None:
    leaves = {name: x.float().to(device) for name, x in drawn(3, (1, 4, 3, 5), ("x", "weight", "residual")).items()}
    results = []
    for backend in ("triton", "reference"):
        own = {name: x.clone().requires_grad_() for name, x in leaves.items()}
        out = depthwise_conv(**own, backend=backend).relu_()
        results.append([out, *torch.autograd.grad(out.sum(), list(own.values()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_one_graph_serves_all_sizes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    torch.compiler.reset()
    graphs = []

    def noted(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph

    run = torch.compile(depthwise_conv, backend=noted, fullgraph=True, dynamic=True)
    for height, width in ((5, 9), (7, 11), (8, 13)):  # no two sizes alike: compilers would take them for one
        leaves = {name: x.float().to(device) for name, x in drawn(3, (2, 6, height, width)).items()}
        torch.testing.assert_close(run(**leaves), depthwise_conv(**leaves, backend="reference"), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
