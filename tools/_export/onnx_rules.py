"""A rule of onnxscript's optimiser that is asked only where it can apply: else large graphs take minutes more."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quick_rules() -> Iterator[None]:
    """Inside, `SlicesSplit`, which turns a pair of slices into a split, is tried at slices alone.

    onnxscript tries it at every node, and lists the whole graph each time before it looks at the node. The graph comes
    out the same. Nothing is changed where onnxscript has no such rule.
    """
    try:
        from onnxscript.rewriter.rules.common import slice_split_rule
    except ImportError:
        yield
        return
    tried = slice_split_rule.try_rewrite

    def try_rewrite(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        return tried(model, graph, node, **options) if node.op_type == "Slice" else None

    slice_split_rule.try_rewrite = try_rewrite  # type: ignore[method-assign]
    try:
        yield
    finally:
        del slice_split_rule.try_rewrite  # the class's own is there again
