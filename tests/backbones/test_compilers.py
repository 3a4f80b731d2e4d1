"""What transforms or records a network: `torch.func`, traces, scripts, fx graphs, `torch.compile`, `torch.export`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from timm.layers import set_scriptable
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.ao.quantization import quantize_dynamic
from torch.torch_version import TorchVersion
from torchvision.models.feature_extraction import create_feature_extractor

Build = Callable[..., Any]


# --- transformations ---


def test_gradients_of_single_images_are_those_of_each_alone(small: Build, family: str) -> None:
    if family.startswith("shvit") and TorchVersion(torch.__version__) < "2.12":
        pytest.skip("group norm of channels-last maps has no rule for vmap in PyTorch 2.11")
    model, x = small(family, num_classes=3), torch.randn(2, 3, 64, 64)
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(model, (weights, buffers), (one[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    model(x[1:]).square().sum().backward()
    scale = max(value.grad.abs().max() for value in weights.values())
    for key, value in weights.items():
        assert (each[key][1] - value.grad).abs().max() <= 1e-4 * scale, key


@torch.no_grad()
def test_forward_mode_differentiation_agrees_with_finite_differences(small: Build, few: str) -> None:
    model, x = small(few, num_classes=3, dtype=torch.float64), torch.randn(1, 3, 64, 64).double()
    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(model, (x,), (direction,))
    step = 1e-6
    expected = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_trace_gives_the_same_logits(small: Build, family: str) -> None:
    model, x = small(family), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x), rtol=1e-4, atol=1e-5)


# --- scripts, graphs, compilers ---


@torch.no_grad()
def test_a_scripted_model_is_the_same_at_two_sizes(small: Build, family: str) -> None:
    with set_scriptable(True):
        model = small(family)
    scripted = torch.jit.script(model)
    for x in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 77, 96)):
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_scripted_feature_extractor_gives_the_same_maps(small: Build, family: str) -> None:
    with set_scriptable(True):
        model = small(family, features_only=True, out_indices=(0, 2))
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@torch.no_grad()
def test_a_quantised_network_can_be_scripted(small: Build, family: str) -> None:
    if family.startswith("transnext"):
        pytest.skip(
            "a script reads the weights of its position bias, and a script that fails spoils the class for others"
        )
    with set_scriptable(True):
        model = quantize_dynamic(small(family), {nn.Linear})
    x = torch.randn(1, 3, 75, 109)
    expected = model(x)
    assert (torch.jit.script(model)(x) - expected).abs().mean() < 0.1 * expected.std()  # a rounding may go either way


def traced(model: nn.Module) -> nn.Module:
    """The model as torchvision's feature extraction sees it: one fx graph that ends in the logits."""
    options = {
        "leaf_modules": list(get_notrace_modules()),
        "autowrap_functions": list(get_notrace_functions()),
    }
    return create_feature_extractor(model, {"head": "logits"}, tracer_kwargs=options)


@torch.no_grad()
def test_an_fx_graph_gives_bitwise_the_same_logits(small: Build, family: str) -> None:
    model, x = small(family), torch.randn(1, 3, 96, 64)
    assert torch.equal(traced(model)(x)["logits"], model(x))


def test_an_fx_graph_sends_a_gradient_to_every_parameter(small: Build, family: str) -> None:
    graph = traced(small(family, num_classes=42).train())
    graph(torch.randn(2, 3, 64, 64))["logits"].mean().backward()
    assert [key for key, value in graph.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_an_fx_graph_can_be_scripted(small: Build, few: str) -> None:
    with set_scriptable(True):
        model = small(few)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(traced(model))(x)["logits"], model(x))


@pytest.mark.parametrize("features_only", [False, pytest.param(True, marks=pytest.mark.all)])
@torch.no_grad()
def test_compiling_gives_one_graph_and_a_second_size_at_most_one_more(
    small: Build, few: str, features_only: bool
) -> None:
    torch.compiler.reset()
    model, counter = small(few, features_only=features_only), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for x in (torch.randn(2, 3, 64, 64), torch.randn(2, 3, 96, 77)):
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2


def test_a_compiled_model_trains(small: Build, few: str) -> None:
    torch.compiler.reset()
    model, x = small(few, num_classes=10).train(), torch.randn(4, 3, 64, 128)
    twin = copy.deepcopy(model)
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    twin(x).square().sum().backward()
    largest = max(value.grad.abs().max() for value in twin.parameters())
    for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-3 * b.grad.abs().max() + 1e-5 * largest, key


@pytest.mark.parametrize("features_only", [False, pytest.param(True, marks=pytest.mark.all)])
@torch.no_grad()
def test_an_exported_program_takes_any_batch_height_and_width(small: Build, few: str, features_only: bool) -> None:
    model = small(few, features_only=features_only)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (torch.randn(2, 3, 128, 192),), dynamic_shapes=(free,)).module()
    for size in ((3, 192, 128), (1, 129, 259), (1, 203, 333), (2, 96, 144)):  # maps of one pixel a side would be fixed
        x = torch.randn(size[0], 3, *size[1:])
        torch.testing.assert_close(program(x), model(x))


PROVEN = {"transnext_micro_aaaa_256": 128, "shvit": 128}  # sides from which on each map has two pixels or more


@pytest.mark.all
@torch.no_grad()
def test_an_export_takes_ranges_of_sides_too(small: Build, slow_network: str) -> None:
    """The exporter must prove for each side of the ranges what it found for one."""
    least = next((side for start, side in PROVEN.items() if slow_network.startswith(start)), 64)
    image = torch.randn(2, 3, 203, 333)
    ranges = {0: torch.export.Dim("batch", min=1, max=64)}
    ranges |= {i: torch.export.Dim(side, min=least, max=4096) for i, side in ((2, "height"), (3, "width"))}
    model = small(slow_network)
    if slow_network == "biformer_stl_nchw":  # README says so: that its map has more than one region cannot be proven
        with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
            torch.export.export(model, (image,), dynamic_shapes=(ranges,))
        return
    program = torch.export.export(model, (image,), dynamic_shapes=(ranges,)).module()
    x = torch.randn(1, 3, least, 211)
    torch.testing.assert_close(program(x), model(x))


@pytest.mark.all  # tests/tools/test_export_onnx_names.py exports two names in every run
@torch.no_grad()
def test_an_onnx_graph_takes_any_batch_height_and_width(small: Build, slow_network: str, tmp_path: Path) -> None:
    model, file = small(slow_network), tmp_path / "model.onnx"
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(model, (torch.randn(2, 3, 128, 192),), dynamic_shapes=(free,), verbose=False)
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file)
    for size in ((1, 203, 333), (3, 96, 144)):
        x = torch.randn(size[0], 3, *size[1:])
        (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), model(x), rtol=1e-3, atol=1e-4)
