"""The optimiser's rule for pairs of slices: it looks at slices of one tensor alone, with the same result."""

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import onnx_ir as ir
import pytest
import torch
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn
from vertebra.tools._export import onnx_graph
from vertebra.tools._export.onnx_graph import FREE_SIZE, trace
from vertebra.tools._export.onnx_rules import quick_rules


class Halves(nn.Module):
    """(B, 4, H, W) -> a sum of the halves of the channels (B, H, W, 2)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return x[..., :2].relu() + x[..., 2:4].sigmoid()


def operators() -> list[str]:
    program = trace("halves", Halves(), torch.randn(2, 4, 8, 8), ["out"], FREE_SIZE)
    return [node.op_type for node in program.model.graph]


def test_the_rule_looks_at_slices_of_one_tensor_alone_and_the_graph_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[ir.Node]] = []
    match = type(slice_split_rule).match

    def remember(rule: object, model: object, graph: Iterable[ir.Node], node: ir.Node, **options: object) -> object:
        if rule is slice_split_rule:
            seen.append([node, *graph])
        return match(rule, model, graph, node, **options)

    monkeypatch.setattr(type(slice_split_rule), "match", remember)
    quick = operators()
    assert seen
    assert all({(node.op_type, node.inputs[0]) for node in nodes} == {("Slice", nodes[0].inputs[0])} for nodes in seen)
    monkeypatch.setattr(onnx_graph, "quick_rules", contextlib.nullcontext)
    before = len(seen)
    assert operators() == quick
    assert {nodes[0].op_type for nodes in seen[before:]} > {"Slice"}


_PAIR = """
<ir_version: 10, opset_import: ["" : 20]>
pair (float[2, 4] x, float[2, 4] y) => (float[2, 2] a, float[2, 2] b, float[2, 3] c)
<int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}, int64[1] last = {1}>
{
    c = Slice (y, zero, three, last)
    second = Slice (x, two, four, last)
    first = Slice (x, zero, two, last)
    a = Relu (first)
    b = Relu (second)
}
"""


@pytest.mark.parametrize("inside", [contextlib.nullcontext, quick_rules])
def test_halves_of_a_tensor_become_a_split(inside: Callable[[], AbstractContextManager[None]]) -> None:
    model = ir.from_onnx_text(_PAIR)
    with inside():
        assert slice_split_rule.apply_to_model(model) == 1
    assert [node.op_type for node in model.graph] == ["Slice", "Split", "Relu", "Relu"]


def test_the_rule_is_its_own_again_afterwards() -> None:
    before = slice_split_rule.match
    with pytest.raises(KeyError), quick_rules():
        raise KeyError
    assert slice_split_rule.match == before
    assert "match" not in vars(slice_split_rule)
