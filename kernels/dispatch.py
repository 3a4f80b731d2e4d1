"""Which implementation of an operator runs: the argument `backend`, else VERTEBRA_KERNELS, else what is best here.

reference   a few plain lines that define the operator; the tests compare everything else with it
eager       fast PyTorch for any device, dtype, export and compiler
triton      kernels for CUDA GPUs, forward and backward; each operator's `triton.py`

`auto`, the default, takes Triton where a row of results/kernels.csv shows it checked and faster, and eager elsewhere.
Exports, scripts, fx graphs, `torch.func` and the meta device take plain PyTorch, whatever the variable says; a
transformation inside of `torch.compile` cannot be told, so there the variable holds. `explain` says what a call would
take, and why.
"""

import csv
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _triton
from ._layout import is_exporting, is_transformed

BACKENDS = ("reference", "eager", "triton")
VARIABLE = "VERTEBRA_KERNELS"
_VALUES = ("", "auto", *BACKENDS)
_COLUMNS = ("operator", "shape", "dtype", "device", "device_name", "case", "mode", "way", "value", "checked")
MEASURED = Path(__file__).parent.parent / "results" / "kernels.csv"


class BackendError(RuntimeError):
    """The backend that was asked for cannot run; the message is one sentence that says why."""


class UnknownBackendError(ValueError):
    """There is no such backend; the message is one sentence that names those there are."""


class Decision(NamedTuple):  # compilers follow the making of one; of a dataclass they do not
    """The backend that runs, and why others do not."""

    backend: str
    refused: dict[str, str]


class _Answer(Exception):
    """Carries a decision from the operator that would have followed it back to `explain`."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision


@dataclass(frozen=True)
class _Question:
    """Stands in the place of a backend where `explain` asks."""

    backend: str | None


def explain(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What `function(*args, **kwargs)`, an operator's call, would run, without running it.

    Returns:
        {"backend": name, "refused": {name of another: the reason}}.

    Raises:
        TypeError: `function` is no operator.
        BackendError: nothing would run, since a backend was asked for that cannot.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin function may have none
        signature = inspect.Signature()
    if "backend" not in signature.parameters:
        raise TypeError(f"explain takes an operator of vertebra.kernels, and {function!r} has no argument `backend`")
    bound = signature.bind(*args, **kwargs)
    bound.arguments["backend"] = _Question(bound.arguments.get("backend"))
    try:
        function(*bound.args, **bound.kwargs)
    except _Answer as answer:
        return {"backend": answer.decision.backend, "refused": dict(answer.decision.refused)}
    raise TypeError(f"explain takes an operator of vertebra.kernels, and {function!r} asked no dispatcher")


def choose(
    operator: str,
    backend: Any,
    tensors: Sequence[Tensor | None],
    unfit: Callable[[], str | None],
    shape: Callable[[], str] | None = None,
) -> str:
    """The backend to run.

    Args:
        operator: its name.
        backend: what the caller asked for, or None.
        tensors: the operator's floating-point tensors; the first gives the result's dtype.
        unfit: says why these arguments are beyond the kernel, or None. Asked only where a kernel could run, since sizes
            that are looked at in an export are fixed by that.
        shape: names the class of shapes that measurements are looked up for; None for an operator without a kernel.

    Raises:
        UnknownBackendError: a backend that does not exist; names those that do.
        BackendError: a backend that was asked for cannot run; says why.
    """
    if isinstance(backend, _Question):
        raise _Answer(_decide(operator, backend.backend, tensors, unfit, shape))
    return _decide(operator, backend, tensors, unfit, shape).backend


def is_reference(backend: str | None) -> bool:
    """Whether the reference is asked for, by the argument or by the environment, or all that can be followed.

    Under `torch.func` and forward-mode differentiation it is, unless the argument says otherwise.

    Raises:
        UnknownBackendError: a backend that does not exist; names those that do.
    """
    if _asked(backend) == "reference":
        return True
    return backend is None and not torch.compiler.is_compiling() and is_transformed()


def check_variable() -> str:
    """What the environment asks for: "auto" or a backend.

    Raises:
        UnknownBackendError: a value that does not exist; names those that do.
    """
    return _asked(None)


def _asked(backend: str | None) -> str:
    if backend is not None:
        if backend not in BACKENDS:
            raise UnknownBackendError(f"backend is {backend!r}; it takes None, {', '.join(map(repr, BACKENDS))}")
        return backend
    asked = os.environ.get(VARIABLE, "")
    if asked not in _VALUES:
        raise UnknownBackendError(f"{VARIABLE} is {asked!r}; it takes {', '.join(_VALUES[1:])}")
    return asked or "auto"


def _decide(
    operator: str,
    backend: str | None,
    tensors: Sequence[Tensor | None],
    unfit: Callable[[], str | None],
    shape: Callable[[], str] | None,
) -> Decision:
    asked = _asked(backend)
    if asked in ("reference", "eager"):
        return Decision("reference" if is_reference(backend) else "eager", {})
    present = [x for x in tensors if x is not None]
    plain = "reference" if backend is None and is_reference(None) else "eager"
    followed = _followed(present[0])
    if followed:
        reason = f"{followed} takes plain PyTorch"
    elif asked == "triton":
        reason = unfit() or _triton.why_not(present)
    else:
        reason = _triton.why_not(present) or unfit()
    if asked == "triton":
        if reason is None:
            return Decision("triton", {})
        if backend is None and (followed or shape is None):
            return Decision(plain, {"triton": reason})
        by = f"backend={asked!r}" if backend is not None else f"{VARIABLE}={asked}"
        raise BackendError(f"{operator} cannot run on Triton, as {by} asks: {reason}")
    if reason is None and _triton.INTERPRETED:
        reason = f"kernels run in Triton's interpreter, slowly; {VARIABLE}=triton asks for it"
    if reason is not None or shape is None:
        return Decision(plain, {"triton": reason or "there is no kernel"})
    return _measured(operator, shape(), str(present[0].dtype).removeprefix("torch."))


def _followed(x: Tensor) -> str | None:
    """Who wants to see plain PyTorch: those that write their own version of the code, and shapes without numbers."""
    if isinstance(x, torch.fx.Proxy):
        return "an fx graph"
    if is_exporting() or torch.jit.is_tracing():
        return "an export"
    if not torch.compiler.is_compiling() and is_transformed():
        return "torch.func"
    if x.device.type == "meta":
        return "the meta device"
    return None


def _measured(operator: str, shape: str, dtype: str) -> Decision:
    row = _FASTER.get((operator, shape, dtype))
    if row is None:
        return Decision(
            "eager",
            {"triton": f"not measured: no row of results/kernels.csv for {operator}, {shape}, {dtype}; "
             f"{VARIABLE}=triton takes it all the same"},
        )  # fmt: skip
    device, *ratios = row
    ratio = ratios[torch.compiler.is_compiling()]
    if ratio <= 1:
        return Decision("eager", {"triton": f"measured on {device}: without it, it takes {ratio:.2f} of the time"})
    return Decision("triton", {"eager": f"measured on {device}: it takes {ratio:.2f} times Triton's time"})


def read_measured(path: Path) -> dict[tuple[str, str, str], tuple[str, float, float]]:
    """How many times Triton's time others take, at worst, for an operator, a class of shapes and a dtype.

    Args:
        path: rows of `benchmark kernels`; those of a GPU, checked, count. A file that is missing says nothing.

    Returns:
        (operator, shape, dtype) -> (name of the GPU, ratio of eager, ratio of the faster of eager and compiled eager).
    """
    if not path.is_file():
        return {}
    times: dict[tuple[str, ...], dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if None in (row.get(key) for key in _COLUMNS) or not row["value"]:
                continue
            if row["device"].startswith("cuda") and row["checked"] == "True":
                case = tuple(row[key] for key in ("operator", "shape", "dtype", "device_name", "case", "mode"))
                times.setdefault(case, {})[row["way"]] = float(row["value"])
    worst: dict[tuple[str, str, str], tuple[str, float, float]] = {}
    for (operator, shape, dtype, device, *_), ways in times.items():
        if "triton" not in ways or "eager" not in ways:
            continue
        eager, best = (time / ways["triton"] for time in (ways["eager"], min(ways["eager"], ways.get("compiled", 1e9))))
        key = (operator, shape, dtype)
        before = worst.get(key, (device, eager, best))
        worst[key] = (device if eager <= before[1] else before[0], min(eager, before[1]), min(best, before[2]))
    return worst


_FASTER = read_measured(MEASURED)
