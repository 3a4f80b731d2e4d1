"""ONNX graphs: what a plain runtime would not take is found wherever it stands, and nothing is needless."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnxscript import optimizer
from small_networks import Scale
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import Classifier
from vertebra.tools._export import onnx_graph
from vertebra.tools._export.classifier import export
from vertebra.tools._export.onnx_graph import answers, check_graph, save, trace


def write(path: Path, nodes: Sequence[Any], constants: Sequence[Any] = ()) -> Path:
    """A graph image (2, 3) -> answer (2, 3)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("image", "answer")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), path)
    return path


def either(*inside: Any) -> list[Any]:
    """An If whose two branches hold the same nodes, the last of which gives the answer."""
    given = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [2, 3])
    branch = helper.make_graph(inside, "branch", [], [given])
    always = helper.make_node("Constant", [], ["always"], value=helper.make_tensor("v", TensorProto.BOOL, [], [True]))
    return [always, helper.make_node("If", ["always"], ["answer"], then_branch=branch, else_branch=branch)]


def test_a_file_that_is_no_valid_onnx_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["nowhere"], ["answer"])])
    with pytest.raises(UserError, match="the exported file is no valid ONNX: "):
        check_graph(path)


def test_nodes_inside_of_branches_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", either(helper.make_node("Relu", ["image"], ["answer"])))
    assert check_graph(path) == (4, 18)


def test_random_numbers_inside_of_a_branch_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", either(helper.make_node("RandomUniform", [], ["answer"], shape=[2, 3])))
    with pytest.raises(UserError, match="draws random numbers or belongs to training: RandomUniform"):
        check_graph(path)


def test_operators_of_other_domains_inside_of_a_branch_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", either(helper.make_node("Magic", ["image"], ["answer"], domain="com.example")))
    with pytest.raises(UserError, match=r"operators outside the standard: com\.example\.Magic"):
        check_graph(path)


@pytest.mark.parametrize("training", [0, 1])
def test_norms_that_take_their_statistics_from_the_batch_are_refused(training: int, tmp_path: Path) -> None:
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [3], [1.0] * 3) for name in "sbmv"]
    outputs = ["answer", "mean", "var"] if training else ["answer"]
    norm = helper.make_node("BatchNormalization", ["image", *"sbmv"], outputs, training_mode=training)
    path = write(tmp_path / "m.onnx", [norm], constants)
    if not training:
        assert check_graph(path) == (1, 18)
        return
    with pytest.raises(UserError, match="belongs to training: BatchNormalization"):
        check_graph(path)


def test_what_fits_into_one_file_is_one_file_whatever_pytorch_thinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = pytest.importorskip("torch.onnx._internal.exporter._onnx_program")
    if not hasattr(inside, "_LARGE_MODEL_THRESHOLD"):
        pytest.skip("this PyTorch has no threshold of its own, or calls it otherwise")
    monkeypatch.setattr(inside, "_LARGE_MODEL_THRESHOLD", 0)
    report = export(Classifier("test_resnet", Scale(2.0)), tmp_path / "m.onnx", static=(32, 32))
    assert report.data_file is None
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


class Positions(nn.Module):
    """A table of 64 positions by an MLP whose hidden layer is 500 times as large: (B, 3, H, W) -> (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.linspace(-1, 1, 64)[:, None])
        self.mlp = nn.Sequential(nn.Linear(1, 512), nn.ReLU(), nn.Linear(512, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] + self.mlp(self.place)[:, 0]


def written(model: nn.Module, path: Path) -> int:
    """Bytes that a file has beyond its model's own, after it has answered as the model does."""
    images = torch.randn(2, 3, 8, 8)
    save(trace("positions", model, images, ["table"], {0: "batch"}), path)
    with torch.inference_mode():
        torch.testing.assert_close(answers(path)(images)[0], model(images))
    return path.stat().st_size - sum(p.nbytes for p in model.parameters())


def test_constants_are_computed_to_their_end_and_not_left_half_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert written(Positions().eval(), tmp_path / "m.onnx") < 3_000


def test_file_stays_as_it_is_where_folding_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folded, optimize = [], optimizer.optimize_ir

    def fail(model: Any, **limits: Any) -> None:
        optimize(model, **limits)
        if limits:  # those of a second try
            folded.append(model)
            raise RuntimeError("no such operator")

    monkeypatch.setattr(optimizer, "optimize_ir", fail)
    torch.manual_seed(0)
    assert written(Positions().eval(), tmp_path / "m.onnx") > 100_000
    assert len(folded) == 2


def test_folding_that_makes_a_file_larger_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(onnx_graph, "_folded_on", lambda model: larger(model.clone()))
    assert written(Positions().eval(), tmp_path / "m.onnx") < 200_000


def larger(model: Any) -> Any:
    """The graph with a constant of 400,000 bytes more."""
    tensor = ir.tensor(np.ones(100_000, np.float32), name="more")
    model.graph.register_initializer(ir.Value(name="more", const_value=tensor))
    return model
