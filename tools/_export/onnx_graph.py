"""ONNX graphs: traced by PyTorch's exporter, described, saved, checked, and run by ONNX Runtime."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._common import need
from vertebra.tools._export.checks import STATIC_HINT, first_line
from vertebra.tools._export.files import data_file
from vertebra.tools._export.onnx_rules import quick_rules
from vertebra.tools._export.quiet import quiet

ONE_FILE_LIMIT = 2**31 - 2**24
"""Bytes of weights above which they go beside the file; protobuf ends at 2 GiB, and the graph wants some room."""

LOWEST_OPSET = 18  # what PyTorch's exporter writes natively; its conversion downwards fails on most networks
FREE_SIZE = {0: "batch", 2: "height", 3: "width"}
_RANDOM = re.compile(r"Random|Bernoulli|Multinomial|Dropout")
_GROWN = 1024
"""Numbers that a result of constants may have to be kept in place of fewer, where a file should be small."""


def check_packages() -> Any:
    """The module onnx; UserError if it, the exporter's library or ONNX Runtime is missing."""
    for module in ("onnxscript", "onnxruntime"):
        need(module, extra="export")
    return need("onnx", extra="export")


def check_opset(opset: int | None) -> None:
    """UserError for a version of the operators that the exporter cannot write."""
    newest = check_packages().defs.onnx_opset_version()
    if opset is not None and not LOWEST_OPSET <= opset <= newest:
        raise UserError(f"--opset {opset} cannot be written; from {LOWEST_OPSET} to {newest} is what is supported")


def trace(
    name: str,
    model: nn.Module,
    images: Tensor,
    outputs: Sequence[str],
    free: Mapping[int, str],
    opset: int | None = None,
    **options: Any,
) -> Any:
    """PyTorch's ONNXProgram of the model.

    Args:
        name: what to call the model in sentences.
        model: takes `images` alone, returns a tensor or a tuple of them.
        images: what to trace with (B, C, H, W), on any device; at least 2 images.
        outputs: names of the results.
        free: the images' axes that stay free, and their names: `FREE_SIZE`, or {0: "batch"}.
        opset: version of the operators; None takes PyTorch's default.
        options: more keywords of `torch.onnx.export`.

    Raises:
        UserError: the exporter failed; with its own reason.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    try:
        with quiet(), quick_rules(), torch.no_grad():
            program: Any = torch.onnx.export(
                model,
                (images.to(device),),
                dynamo=True,
                dynamic_shapes=(dict(free),),
                input_names=["image"],
                output_names=list(outputs),
                opset_version=opset,
                optimize=False,  # done below: what was traced is kept
                verbose=False,
                **options,
            )
            traced = program.model.clone()
            _fold(program.model)
    except Exception as error:  # the exporter runs the whole compiler: anything can come out of it
        hint = STATIC_HINT if len(free) > 1 else ""
        raise UserError(f"{name} cannot be exported: {first_line(error.__cause__ or error)}{hint}") from error
    if _bytes_of_constants(program.model) > own:
        folded = [program.model]
        for fold in (lambda: _folded_on(program.model), lambda: _folded_less(traced)):
            with contextlib.suppress(Exception):  # the file is only larger than it must be
                folded.append(fold())
        program.model = min(folded, key=_bytes_of_constants)
    return program


def _bytes_of_constants(model: Any) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def _fold(model: Any, **limits: int) -> None:
    """Compute what depends on constants alone, and simplify, in place, as PyTorch's exporter does."""
    from onnxscript.optimizer import optimize_ir

    optimize_ir(model, **limits)


def _folded_on(model: Any) -> Any:
    """A copy of a graph in which what depends on constants alone is computed to its end, where that is no larger.

    Folding ends at inputs of some thousand numbers, and leaves behind what it has computed by then: of an MLP that
    makes a small table of positions, its wide hidden layer. No result may be larger than the constants that go with it.
    """
    copied = model.clone()
    largest = max(value.const_value.size for value in copied.graph.initializers.values())
    with quiet(), quick_rules():
        _fold(copied, input_size_limit=largest, output_size_limit=0)
    return copied


def _folded_less(traced: Any) -> Any:
    """A copy of a traced graph in which no result of constants is much larger than they are.

    Folding lets one grow to 262,144 numbers: the bias of MaxViT's windows from 225 a head to 4096.
    """
    copied = traced.clone()
    with quiet(), quick_rules():
        _fold(copied, output_size_limit=_GROWN)
    return copied


def describe(program: Any, properties: Mapping[str, str]) -> None:
    """Put `properties` into the file, and take out the exporter's traces of this machine."""
    program.model.metadata_props.update(properties)
    for part in (program.model.graph, *program.model.graph.all_nodes(), *program.model.graph.initializers.values()):
        part.metadata_props.clear()  # file names and source lines for every node


def save(program: Any, path: Path) -> Path | None:
    """Write the file; returns the second one, with the weights, where one file would be too large."""
    ir = need("onnx_ir", extra="export")
    data = data_file(path) if _bytes_of_constants(program.model) > ONE_FILE_LIMIT else None
    with quiet():  # the program's own `save` moves weights out far below protobuf's limit, and says nothing of it
        ir.save(program.model, path, external_data=data.name if data else None)
    return data


def check_graph(path: Path, opset: int | None = None) -> tuple[int, int]:
    """Number of nodes and opset; UserError for a file that ONNX or a plain runtime for inference would not take.

    Nodes inside of branches, loops and functions are looked at and counted like any other.
    """
    onnx = need("onnx", extra="export")
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"the exported file is no valid ONNX: {first_line(error)}") from error
    model = onnx.load(path, load_external_data=False)
    nodes = [node for part in (model.graph, *model.functions) for node in _nodes(part)]
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise UserError(f"the exported file needs operators outside the standard: {', '.join(foreign)}")
    random = sorted({node.op_type for node in nodes if _RANDOM.search(node.op_type) or _trains(node)})
    if random:
        raise UserError(f"the exported file draws random numbers or belongs to training: {', '.join(random)}")
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and found != opset:
        raise UserError(f"--opset {opset}: the exporter could not convert this model, and wrote opset {found}")
    return len(nodes), found


def _nodes(part: Any) -> Iterator[Any]:
    """Every node of a graph or function, those of the graphs inside it included."""
    for node in part.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _trains(node: Any) -> bool:
    """Whether a node, a BatchNormalization say, takes its statistics from the batch."""
    return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)


def open_session(path: Path, threads: int | None = None) -> Any:
    """ONNX Runtime's session of a file on the CPU, silent, with as many threads as PyTorch has, or `threads`.

    Raises:
        UserError: ONNX Runtime does not take the file.
    """
    runtime = need("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own, without a common base
        raise UserError(f"ONNX Runtime cannot run the exported file: {first_line(error)}") from error


def answers(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """What ONNX Runtime makes of a file: images (B, C, H, W) float32 -> its outputs."""
    session = open_session(path)
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {"image": images.numpy()})]
