"""The optimiser's rule for pairs of slices: asked at slices alone, with the same result."""

import contextlib

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


def test_the_rule_is_asked_at_slices_alone_and_the_graph_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    tried = type(slice_split_rule).try_rewrite

    def remember(rule: object, model: object, graph: object, node: ir.Node, **options: object) -> object:
        if rule is slice_split_rule:
            asked.append(node.op_type)
        return tried(rule, model, graph, node, **options)

    monkeypatch.setattr(type(slice_split_rule), "try_rewrite", remember)
    quick = operators()
    assert set(asked) == {"Slice"}
    monkeypatch.setattr(onnx_graph, "quick_rules", contextlib.nullcontext)
    assert operators() == quick
    assert set(asked) > {"Slice"}


def test_the_rule_is_its_own_again_afterwards() -> None:
    before = slice_split_rule.try_rewrite
    with pytest.raises(KeyError), quick_rules():
        raise KeyError
    assert slice_split_rule.try_rewrite == before
    assert "try_rewrite" not in vars(slice_split_rule)
