"""What `register` promises, of every operator: compilers, autocast, counters, checkpoints see one each way."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from vertebra.kernels.channel_attention import channel_attention
from vertebra.kernels.depthwise_conv import depthwise_conv
from vertebra.kernels.linear_attention import linear_attention
from vertebra.kernels.neighborhood_pool_attention import neighborhood_pool_attention
from vertebra.kernels.routing_attention import routing_attention
from vertebra.kernels.window_attention import window_attention

HEADS, HEAD_DIM = 2, 8
C = HEADS * HEAD_DIM
ROUTES = torch.tensor([[[0, 1], [0, 2], [2, 3], [0, 3]]])
ROWS, COLUMNS = torch.tensor([[0, 1], [2, 0], [1, 1]]), torch.tensor([[0, 1], [1, 2], [2, 0], [0, 0], [1, 2]])


def windows(q: Tensor, k: Tensor, v: Tensor, **parameters: Tensor) -> Tensor:
    """Windows that the map does not fill."""
    return window_attention(q, k, v, (2, 2), **parameters)


def stripes(q: Tensor, k: Tensor, v: Tensor, **parameters: Tensor) -> Tensor:
    """Half of the heads in other windows."""
    return window_attention(q, k, v, (3, 2), cross_window=(2, 5), **parameters)


def regions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Four regions that each attend to two."""
    return routing_attention(q, k, v, ROUTES.to(q.device).expand(q.shape[0], -1, -1))


def neighbours(q: Tensor, k: Tensor, v: Tensor, **parameters: Tensor) -> Tensor:
    """A corner of the map stands for the pooled one."""
    pool_k, pool_v = (x[:, :2, :2].flatten(1, 2) for x in (k, v))
    places = {"bias_rows": ROWS.to(q.device), "bias_columns": COLUMNS.to(q.device)}
    return neighborhood_pool_attention(q, k, v, pool_k, pool_v, **parameters, **places)


def convolution(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """With all that may follow it."""
    x, gate, residual = (m.flatten(3).permute(0, 3, 1, 2) for m in (q, k, v))
    return depthwise_conv(x, weight, bias, activation="gelu", gate=gate, residual=residual).permute(0, 2, 3, 1)


OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    # what runs, the sides of its map, and the shapes of its parameters
    "window_attention": (windows, (3, 5), {"bias_table": (HEADS, 3, 3), "pad": (3, HEADS, HEAD_DIM)}),
    "window_attention, two kinds": (stripes, (3, 5), {"lepe_weight": (C, 1, 3, 3), "lepe_bias": (C,)}),
    "routing_attention": (regions, (4, 6), {}),
    "neighborhood_pool_attention": (
        neighbours,
        (3, 5),
        {
            "query_embedding": (HEADS, 1, HEAD_DIM),
            "temperature": (HEADS, 1, 1),
            "relative_pos_bias_local": (HEADS, 9),
            "learnable_tokens": (HEADS, HEAD_DIM, 9),
            "learnable_bias": (HEADS, 1, 9),
            "bias_table": (HEADS, 3, 3),
        },
    ),
    "channel_attention": (channel_attention, (15,), {}),
    "linear_attention": (linear_attention, (15,), {"temperature": (HEADS,)}),
    "depthwise_conv": (convolution, (3, 5), {"weight": (C, 1, 3, 3), "bias": (C,)}),
}


class Layer(nn.Module):
    """A projection and what runs on it, as models have them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.operator = name.partition(",")[0]
        self.run, self.sides, shapes = OPERATORS[name]
        self.names = list(shapes)
        self.qkv = nn.Linear(C, 3 * C)
        self.given = nn.ParameterDict({key: torch.randn(shape) for key, shape in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(-3)
        return self.run(q, k, v, **{key: self.given[key] for key in self.names})


@pytest.fixture(params=OPERATORS)
def layer(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> Layer:
    """The module, on the device where kernels run, with VERTEBRA_KERNELS=triton."""
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    return Layer(request.param).to(device)


@pytest.fixture
def x(layer: Layer, device: str) -> Tensor:
    """What the layer takes."""
    return torch.randn(1, *layer.sides, C, device=device)


def gradients(run: Callable[[Tensor], Tensor], layer: Layer, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of x and of every parameter that learns."""
    x = x.clone().requires_grad_()
    out = run(x)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])]


def test_the_variable_takes_triton_and_the_reference_agrees(
    layer: Layer, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = gradients(layer, layer, x)
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    torch.testing.assert_close(ours, gradients(layer, layer, x), rtol=1e-4, atol=1e-4)


class Graphs:
    """A compiler's back end that notes the operators of each graph, and changes none."""

    def __init__(self) -> None:
        self.found: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return aot_autograd(fw_compiler=self._note)(graph, inputs)

    def _note(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        names = [str(node.target) for node in graph.graph.nodes]
        self.found.append([name.split(".")[1] for name in names if name.startswith("vertebra.")])
        return make_boxed_func(graph.forward)


def test_a_compiled_graph_is_whole_and_has_one_operator_each_way(layer: Layer, x: Tensor) -> None:
    torch.compiler.reset()
    graphs = Graphs()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    torch.testing.assert_close(gradients(compiled, layer, x), gradients(layer, layer, x))
    assert graphs.found == [[layer.operator], [f"{layer.operator}_backward"]]


def test_autocast_gives_16_bits_and_gradients_in_the_dtype_of_parameters(layer: Layer, x: Tensor) -> None:
    with torch.autocast(x.device.type, torch.bfloat16):
        out, *found = gradients(layer, layer, x)
    assert out.dtype == torch.bfloat16
    assert {g.dtype for g in found} == {torch.float32}
    for a, b in zip([out.float(), *found], gradients(layer, layer, x), strict=True):
        assert (a - b).norm() <= 0.03 * b.norm()


def test_distributed_data_parallel_sums_its_gradients(layer: Layer, x: Tensor, tmp_path: Path) -> None:
    expected = gradients(layer, layer, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(layer)
        out = wrapped(x)
        (out * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected[2:])


def test_a_checkpoint_computes_again(layer: Layer, x: Tensor) -> None:
    again = gradients(lambda y: checkpoint(layer, y, use_reentrant=False), layer, x)
    torch.testing.assert_close(again, gradients(layer, layer, x))


def test_as_many_operations_are_counted_as_of_the_reference(
    layer: Layer, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        return {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}

    layer(x)  # the operator exists from its first call on
    ours = counted()
    assert 2 <= ours[f"vertebra.{layer.operator}_backward"] / ours[f"vertebra.{layer.operator}"] <= 2.5
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    plain = counted()  # products have two gradients, each as large as the product
    expected = plain.get("aten.bmm", 0) // 3 + plain.get("aten.convolution", 0)
    assert ours[f"vertebra.{layer.operator}"] == expected


def test_a_second_derivative_is_refused_in_one_sentence(layer: Layer, x: Tensor) -> None:
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{layer.operator} .*VERTEBRA_KERNELS=eager"):
        gradient.square().sum().backward()


def test_the_same_bits_every_time(layer: Layer, x: Tensor) -> None:
    first, second = gradients(layer, layer, x), gradients(layer, layer, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_of_none(layer: Layer, x: Tensor) -> None:
    out, *found = gradients(layer, layer, x[:0])
    assert out.shape == (0, *x.shape[1:])
    assert not any(g.any() for g in found)


def test_exports_and_transformations_see_plain_pytorch(layer: Layer, x: Tensor) -> None:
    program = torch.export.export(layer, (x,))
    traced = torch.jit.trace(layer, x)
    assert "vertebra." not in str(program.graph)
    assert "vertebra::" not in str(traced.inlined_graph)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)
    torch.func.vmap(layer)(x[None])  # a kernel has no rule for it


def test_a_copy_learns_and_what_is_frozen_stays(layer: Layer, x: Tensor) -> None:
    expected = gradients(layer, layer, x)
    frozen = copy.deepcopy(layer)
    frozen.given.requires_grad_(False)
    out = frozen(x)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    (out * weights).sum().backward()
    assert all(p.grad is None for p in frozen.given.values())
    torch.testing.assert_close(frozen.qkv.weight.grad, expected[2])
