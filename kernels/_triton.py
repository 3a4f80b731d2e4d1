"""What every operator on Triton shares: where one can run, how it becomes a PyTorch operator, and how it is launched.

Triton itself is imported when a kernel is first launched. With TRITON_INTERPRET=1 in the environment, kernels run on
CPU tensors, slowly and exactly, so that anybody can check them without a GPU.
"""

import importlib.util
import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
"""Whether kernels run in Triton's interpreter, on CPU tensors. The environment that Python started in decides."""

OLDEST = 8
"""The major compute capability that kernels need: Ampere's, which brought bfloat16."""

WIDEST = 64
"""Numbers of a head, at most: wider ones do not fit the shared memory of every GPU."""

_INSTALLED = importlib.util.find_spec("triton") is not None

compiler: Callable[[Any, tuple[Any, ...], dict[str, Any]], None] | None = None
"""Takes the place of launches while it is set: `_compile_only` compiles both passes and looks at what comes out."""


def why_not(tensors: Sequence[Tensor]) -> str | None:
    """Why no kernel can run on these tensors, the first of which gives the result's dtype; None if one can."""
    x = tensors[0]
    if not _INSTALLED:
        return "Triton is not installed"
    if any(other.device != x.device for other in tensors):
        return f"its tensors lie on {' and '.join(sorted({str(other.device) for other in tensors}))}"
    if INTERPRETED:
        if x.device.type != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, and these are on {x.device}"
    elif x.device.type != "cuda":
        return f"its tensors are on {x.device}; kernels need a CUDA GPU, or TRITON_INTERPRET=1 to be checked on a CPU"
    elif torch.version.hip is not None:
        return "nobody has tried the kernels on ROCm"
    elif torch.cuda.get_device_properties(x.device).major < OLDEST:
        return f"{x.device} is older than sm_{OLDEST}0"
    for other in tensors:
        if other.dtype not in DTYPES and not (INTERPRETED and other.dtype == torch.float64):
            return f"a tensor is {other.dtype}; kernels take {', '.join(map(str, DTYPES))}"
    return None


def misfit(layout: str, *tokens: Tensor) -> str | None:
    """Why q, k, v and their like, "(B, N, heads, D)" say, are beyond every attention kernel; None if they are not."""
    if tokens[0].dim() != layout.count(",") + 1:
        return f"q is {tuple(tokens[0].shape)}; the kernel takes {layout}"
    head_dim, kinds = tokens[0].shape[-1], {x.dtype for x in tokens}
    if head_dim > WIDEST:
        return f"heads are {head_dim} wide; the kernel takes up to {WIDEST}"
    if len(kinds) > 1:
        return f"q, k and v are {', '.join(sorted(map(str, kinds)))}; the kernel takes one dtype"
    return None


def misshapen(**given: tuple[Tensor | None, tuple[int, ...]]) -> str | None:
    """Which tensor has another shape than a kernel, which checks none, would read; None if all are right."""
    for name, (x, shape) in given.items():
        if x is not None and tuple(x.shape) != tuple(shape):
            return f"{name} is {tuple(x.shape)}; the kernel takes {tuple(shape)}"
    return None


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is `n` or more; matrices of tensor cores have 16 rows at least."""
    return max(least, 1 << (n - 1).bit_length())


def divide_up(n: int, by: int) -> int:
    """`n / by`, rounded up: how many tiles of a size cover something."""
    return -(-n // by)


def sums_in(x: Tensor) -> torch.dtype:
    """The dtype of sums over values of `x`: float32, in gradient checks float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def numerics(x: Tensor) -> dict[str, Any]:
    """The constants that every kernel with products of matrices takes.

    ACC        the dtype of sums.
    UPCAST     whether operands of a product are cast to it first: the interpreter multiplies bfloat16 wrongly.
    PRECISION  of products in float32: TF32 only where PyTorch's own products may use it.
    """
    import triton.language as tl

    return {
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "UPCAST": INTERPRETED,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
    }


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run `kernel` in so many programs, on the device of its first argument."""
    if not programs:
        return
    x = arguments[0]
    if compiler is not None:
        compiler(kernel, arguments, constants)
    elif x.is_cuda:
        with torch.cuda.device(x.device):
            kernel[(programs,)](*arguments, **constants)
    else:
        kernel[(programs,)](*arguments, **constants)


def register(
    name: str,
    forward: Callable[..., Tensor | tuple[Tensor, ...]],
    shapes: Callable[..., Tensor | tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    flops: Callable[..., int],
    constant: Sequence[str] = (),
    unread: Sequence[str] = (),
    added: Sequence[str] = (),
    backward_flops: float = 2.5,
) -> Callable[..., tuple[Tensor, ...]]:
    """Make PyTorch operators `vertebra::name` and `vertebra::name_backward` of two functions that launch kernels.

    Compilers, autocast, checkpoints and FLOP counters then see one operator each way.

    Args:
        name: of the operator.
        forward: typed arguments -> the result, or (result, what else the backward pass wants to keep ...).
        shapes: the same arguments -> empty tensors of the shapes, dtypes and strides that `forward` returns.
        backward: (gradient of the result, `wanted`, the arguments of `forward`, its results) -> the gradient of every
            tensor argument that is neither `constant` nor `added`, in order and laid out as `like` does, which also
            says what stands for None. `wanted` says of each of them whether anybody asks for it; what nobody asks for
            may be left undone, and has `like`'s shape all the same.
        flops: the arguments of `forward` -> its floating-point operations.
        constant: tensor arguments without a gradient.
        unread: results, and constant or added arguments, that `backward` does not read: they are not kept, and come as
            None.
        added: tensor arguments that are added to the result, whose gradient therefore is the result's own.
        backward_flops: operations of the backward pass for one of the forward pass.

    Returns:
        The operator: the arguments of `forward` -> a tuple of its results.
    """
    parameters = list(inspect.signature(forward).parameters.values())
    is_tensor = [Tensor in (p.annotation, *getattr(p.annotation, "__args__", ())) for p in parameters]
    kept = [name not in unread for name in list(inspect.signature(backward).parameters)[2:]]
    is_added = [p.name in added for p in parameters]
    learned = [tensor and p.name not in (*constant, *added) for tensor, p in zip(is_tensor, parameters, strict=True)]
    devices = ("cuda", "cpu") if INTERPRETED else "cuda"
    operator = torch.library.custom_op(f"vertebra::{name}", forward, mutates_args=(), device_types=devices)
    operator.register_fake(shapes)
    reverse = torch.library.custom_op(f"vertebra::{name}_backward", backward, mutates_args=(), device_types=devices)

    def gradient_shapes(grad: Tensor, wanted: Sequence[bool], *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(like(x, grad) for x, learns in zip(arguments, learned, strict=False) if learns)

    reverse.register_fake(gradient_shapes)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        wanted = [x if keep else None for x, keep in zip((*inputs, *_tuple(output)), kept, strict=True)]
        ctx.added = [x.dtype if adds and x is not None else None for x, adds in zip(inputs, is_added, strict=True)]
        results = wanted[len(inputs) :]
        ctx.save_for_backward(*(x for x, tensor in zip(wanted, is_tensor, strict=False) if tensor), *results)
        ctx.others = [x for x, tensor in zip(inputs, is_tensor, strict=True) if not tensor]
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(parameters)
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        inputs = [next(tensors if tensor else others) for tensor in is_tensor]
        asked = list(zip(inputs, learned, ctx.added, ctx.needs_input_grad[: len(inputs)], strict=True))
        gradients = iter(reverse(grad, [needed for _, learns, _, needed in asked if learns], *inputs, *tensors))
        found: list[Tensor | None] = []
        for x, learns, dtype, needed in asked:
            gradient = next(gradients) if learns else None  # taken from the list in any case
            found.append(grad.to(dtype) if dtype is not None else gradient if needed and x is not None else None)
        return tuple(found)

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{name} on Triton has no second derivative; VERTEBRA_KERNELS=eager takes plain PyTorch, which has"
        )

    operator.register_autograd(differentiate, setup_context=setup)
    reverse.register_autograd(refuse)
    _count_flops(name, flops, backward_flops, len(parameters))

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        if compiler is None:
            return _tuple(operator(*arguments))
        results = _tuple(forward(*arguments))
        backward(torch.empty_like(results[0]), [True] * sum(learned), *arguments, *results)
        return results

    return run


def _tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def like(x: Tensor | None, beside: Tensor) -> Tensor:
    """Room for the gradient of an argument, without the gaps of a view; for None nothing, on the device of another."""
    return beside.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)


def _count_flops(name: str, flops: Callable[..., int], backward_flops: float, count: int) -> None:
    from torch.utils.flop_counter import register_flop_formula

    def forwards(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        return flops(*arguments)

    def backwards(grad: Tensor, wanted: Sequence[bool], *arguments: Any, out_val: Any = None, **_: Any) -> int:
        return math.ceil(backward_flops * flops(*arguments[:count]))

    register_flop_formula(getattr(torch.ops.vertebra, name), get_raw=True)(forwards)
    register_flop_formula(getattr(torch.ops.vertebra, f"{name}_backward"), get_raw=True)(backwards)
