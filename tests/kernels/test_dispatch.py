"""Who decides which implementation runs, and that what nobody knows is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from vertebra.kernels import _triton, dispatch
from vertebra.kernels._layout import is_exporting
from vertebra.kernels.channel_attention import channel_attention
from vertebra.kernels.depthwise_conv import depthwise_conv
from vertebra.kernels.global_attention import global_attention
from vertebra.kernels.linear_attention import linear_attention
from vertebra.kernels.routing_attention import routing_attention
from vertebra.kernels.window_attention import window_attention


@pytest.mark.parametrize(("value", "expected"), [("", False), ("auto", False), ("eager", False), ("reference", True)])
def test_the_environment_decides_where_no_argument_does(
    value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", value)
    assert dispatch.is_reference(None) is expected
    assert dispatch.is_reference("reference") is True
    assert dispatch.is_reference("eager") is False


def test_an_unknown_value_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "referense")
    with pytest.raises(ValueError, match=r"VERTEBRA_KERNELS is 'referense'; it takes auto, reference, eager, triton"):
        dispatch.is_reference(None)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend is 'fast'; it takes None, 'reference', 'eager', 'triton'"):
        dispatch.is_reference("fast")


def test_transformations_get_the_reference() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(dispatch.is_reference(None)) or x)(torch.zeros(2))
    with forward_ad.dual_level():
        seen.append(dispatch.is_reference(None))
    assert seen == [True, True]
    assert not dispatch.is_reference(None)


Q, K, V = torch.zeros(3, 1, 4, 4, 2, 8)
WINDOW = (2, 2)
plain_process = pytest.mark.skipif(_triton.INTERPRETED, reason="Triton's interpreter is on")


@plain_process
def test_explain_says_what_auto_takes_and_why_not_triton() -> None:
    answer = dispatch.explain(window_attention, Q, K, V, WINDOW)
    assert answer["backend"] == "eager"
    assert set(answer["refused"]) == {"triton"}
    assert "cpu" in answer["refused"]["triton"]
    assert "TRITON_INTERPRET=1" in answer["refused"]["triton"]


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_explain_follows_the_argument(backend: str) -> None:
    expected = {"backend": backend, "refused": {}}
    assert dispatch.explain(window_attention, Q, K, V, WINDOW, backend=backend) == expected


@pytest.mark.parametrize("function", [torch.add, torch.relu, timm.create_model, dispatch.is_reference])
def test_explain_takes_operators_only(function: Callable[..., Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        dispatch.explain(function, None)


@plain_process
def test_triton_that_cannot_run_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        dispatch.BackendError, match=r"window_attention .*backend='triton' asks: its tensors are on cpu"
    ):
        window_attention(Q, K, V, WINDOW, backend="triton")
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    with pytest.raises(dispatch.BackendError, match=r"window_attention .*VERTEBRA_KERNELS=triton asks: .*cpu"):
        window_attention(Q, K, V, WINDOW)
    with pytest.raises(dispatch.BackendError, match=r"VERTEBRA_KERNELS=triton"):
        dispatch.explain(window_attention, Q, K, V, WINDOW)


def test_an_operator_without_a_kernel_runs_eager_under_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    q = torch.zeros(1, 4, 2, 8)
    assert global_attention(q, q, q).shape == (1, 4, 16)
    answer = dispatch.explain(global_attention, q, q, q)
    assert answer["backend"] == "eager"
    assert "no kernel" in answer["refused"]["triton"]
    with pytest.raises(dispatch.BackendError, match="no kernel"):
        global_attention(q, q, q, backend="triton")


def test_what_the_kernel_cannot_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.zeros(1, 2, 2, 1, 200)
    with pytest.raises(dispatch.BackendError, match="heads are 200 wide; the kernel takes up to 64"):
        window_attention(wide, wide, wide, WINDOW, backend="triton")


def rows(path: Path, *times: tuple[str, str, float], checked: bool = True, device: str = "cuda:0") -> Path:
    """A file of measurements: (case, way, milliseconds) of one class of shapes."""
    lines = ["operator,shape,dtype,device,device_name,case,mode,way,value,checked"]
    lines += [f"op,one,bfloat16,{device},GPU X,{case},forward,{way},{ms},{checked}" for case, way, ms in times]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_slowest_case_decides(tmp_path: Path) -> None:
    times = [
        ("a", "triton", 1.0),
        ("a", "eager", 3.0),
        ("a", "compiled", 2.0),
        ("b", "triton", 1.0),
        ("b", "eager", 1.5),
    ]
    assert dispatch.read_measured(rows(tmp_path / "k.csv", *times)) == {("op", "one", "bfloat16"): ("GPU X", 1.5, 1.5)}


def test_what_no_gpu_has_checked_counts_for_nothing(tmp_path: Path) -> None:
    times = [("a", "triton", 1.0), ("a", "eager", 3.0)]
    assert dispatch.read_measured(rows(tmp_path / "k.csv", *times, checked=False)) == {}
    assert dispatch.read_measured(rows(tmp_path / "k.csv", *times, device="cpu")) == {}
    assert dispatch.read_measured(rows(tmp_path / "k.csv", times[0])) == {}
    assert dispatch.read_measured(tmp_path / "no such file.csv") == {}


@pytest.mark.parametrize(
    ("measured", "backend", "refused"),
    [
        ({}, "eager", "not measured"),
        ({("window_attention", "block, packed", "float32"): ("GPU X", 1.4, 0.9)}, "triton", "GPU X"),
        ({("window_attention", "block, packed", "float32"): ("GPU X", 0.7, 0.7)}, "eager", "GPU X"),
        ({("window_attention", "block, packed, bias", "float32"): ("GPU X", 1.4, 0.9)}, "eager", "not measured"),
    ],
)
def test_auto_takes_triton_where_it_was_measured_faster(
    measured: dict[tuple[str, str, str], tuple[str, float, float]],
    backend: str,
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "_FASTER", measured)
    monkeypatch.setattr(_triton, "why_not", lambda tensors: None)  # as on a GPU
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    answer = dispatch.explain(window_attention, Q, K, V, WINDOW)
    assert answer["backend"] == backend
    assert refused in answer["refused"]["eager" if backend == "triton" else "triton"]


class Asked(nn.Module):
    """Notes what the code is told while something follows it; gives two results apart, so that a graph shows which."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if is_exporting() else x - 1


def test_exports_are_told_from_everything_else() -> None:
    model, x = Asked(), torch.zeros(2)
    plain, exported = [-1.0, -1.0], [1.0, 1.0]
    assert model(x).tolist() == plain
    torch.compiler.reset()
    assert torch.compile(model, backend="eager", fullgraph=True)(x).tolist() == plain
    for strict in (True, False):
        assert torch.export.export(model, (x,), strict=strict).module()(x).tolist() == exported
    assert torch.jit.trace(model, x)(x).tolist() == plain  # a trace is asked for beside it: see `dispatch`
    assert torch.jit.script(model)(x).tolist() == plain
    assert torch.compile(model, backend="eager", fullgraph=True)(x).tolist() == plain
    assert model(x).tolist() == plain


def test_exports_to_onnx_are_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(Asked().eval(), (torch.zeros(2),), dynamo=True, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model.graph] == ["Add"]


WIDE = torch.zeros(1, 4, 4, 2, 16)
LINE = torch.zeros(1, 4, 2, 8)


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (
            window_attention,
            (Q, K[..., :1, :], V, WINDOW),
            r"k is \(1, 4, 4, 1, 8\); the kernel takes \(1, 4, 4, 2, 8\)",
        ),
        (window_attention, (Q, WIDE, V, WINDOW), r"k is \(1, 4, 4, 2, 16\)"),
        (partial(window_attention, bias_table=torch.zeros(2, 1, 1)), (Q, K, V, WINDOW), r"takes \(2, 3, 3\)"),
        (partial(window_attention, pad=torch.zeros(3, 1, 8)), (Q, K, V, WINDOW), r"pad is \(3, 1, 8\)"),
        (routing_attention, (Q, K, V, torch.zeros(1, 9, 1, dtype=torch.int64)), "a map of 4 x 4 is not cut into 3 x 3"),
        (linear_attention, (LINE, LINE, LINE, torch.zeros(3)), r"temperature is \(3,\); the kernel takes \(2,\)"),
        (channel_attention, (LINE, LINE[:, :3], LINE), r"k is \(1, 3, 2, 8\)"),
        (linear_attention, (LINE[0], LINE[0], LINE[0], torch.ones(2)), r"q is \(4, 2, 8\); .* \(B, N, heads, D\)"),
        (window_attention, (Q, K, V, (0, 2)), r"a window is \(0, 2\)"),
        (partial(window_attention, pad_offset=(-1, 0)), (Q, K, V, WINDOW), r"padded by \(-1, 0\)"),
        (partial(depthwise_conv, dilation=0), (torch.zeros(1, 2, 4, 4), torch.zeros(2, 1, 3, 3)), "dilation is 0"),
        (depthwise_conv, (torch.zeros(1, 2, 4, 4), torch.zeros(2, 1, 3, 3), torch.zeros(1)), r"bias is \(1,\)"),
    ],
)
def test_shapes_that_a_kernel_would_misread_are_named(
    function: Callable[..., Tensor], arguments: tuple[Any, ...], sentence: str
) -> None:
    with pytest.raises(dispatch.BackendError, match=sentence):
        function(*arguments, backend="triton")


def test_the_meta_device_takes_plain_pytorch_under_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    q = torch.zeros(1, 4, 4, 2, 8, device="meta")
    assert window_attention(q, q, q, WINDOW).shape == (1, 4, 4, 16)
    answer = dispatch.explain(window_attention, q, q, q, WINDOW)
    assert answer["backend"] == "eager"
    assert "the meta device" in answer["refused"]["triton"]


ROUTES = torch.zeros(1, 4, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (ROUTES + 4, "index names regions 4 to 4; there are 0 to 3"),
        (ROUTES - 1, "index names regions -1 to -1"),
        (ROUTES.float(), r"index is \(1, 4, 1\), torch.float32; the kernel takes \(1, regions, K\) of integers"),
        (ROUTES.expand(2, 4, 1), r"index is \(2, 4, 1\)"),
        (ROUTES[0], r"index is \(4, 1\)"),
    ],
)
def test_lists_that_name_what_is_not_there_are_refused(index: Tensor, sentence: str) -> None:
    with pytest.raises(dispatch.BackendError, match=sentence):
        routing_attention(Q, K, V, index, regions=(2, 2), backend="triton")
