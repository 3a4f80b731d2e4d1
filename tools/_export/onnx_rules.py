"""A rule of onnxscript's optimiser that looks only where it can apply: else large graphs take minutes more."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


class _Part:
    """A graph, of which a rule that searches it sees some nodes alone."""

    def __init__(self, graph: Any, nodes: Sequence[Any]) -> None:
        self.graph, self._nodes = getattr(graph, "graph", None) or graph, nodes

    def __iter__(self) -> Iterator[Any]:
        return iter(self._nodes)


@contextlib.contextmanager
def quick_rules() -> Iterator[None]:
    """Inside, `SlicesSplit`, which turns two slices of one tensor into a split, looks at slices of one tensor alone.

    onnxscript asks it at every node, and it lists the whole graph each time and pairs a slice with every other one. The
    graph comes out the same. Nothing is changed where onnxscript has no such rule.
    """
    try:
        from onnxscript.rewriter.rules.common import slice_split_rule as rule
    except ImportError:
        yield
        return
    find = rule.match

    def match(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        slices = [user for user in node.inputs[0].consumers() if user.op_type == "Slice"] if _slices(node) else []
        return find(model, _Part(graph, slices), node, **options) if len(slices) > 1 else None

    rule.match = match  # type: ignore[method-assign]
    try:
        yield
    finally:
        del rule.match  # the class's own is there again


def _slices(node: Any) -> bool:
    return node.op_type == "Slice" and node.inputs[0] is not None
