"""`benchmark kernels --compile-only`: what each kernel takes of a GPU, without one."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch
from vertebra.backbones._errors import UserError
from vertebra.kernels._compile_only import SHARED_MEMORY, Compiled, compile_only
from vertebra.kernels._triton import INTERPRETED
from vertebra.tools._benchmark.kernel_cases import find_cases, make, shape_class
from vertebra.tools._results import align, check_csv, columns, origin


@dataclass(frozen=True)
class Row:
    """One kernel of a case: registers of a thread, bytes that it spills, and bytes of shared memory of a program.

    `instructions`: of tensor cores, "wgmma" or "mma"; empty where there are none.
    """

    operator: str
    case: str
    shape: str
    dtype: str
    target: str
    kernel: str
    warps: int
    registers: int
    spills: int
    shared: int
    instructions: str
    triton: str
    torch: str
    vertebra: str
    commit: str
    date: str


def run(
    cases: Sequence[tuple[str, str]], dtypes: Sequence[torch.dtype], targets: Sequence[str], path: Path | None
) -> int:
    """Compile both passes of the cases, print a table, and keep the rows; raises UserError where it cannot."""
    known = [f"sm_{number}" for number in SHARED_MEMORY]
    for target in targets:
        if target not in known:
            raise UserError(f"--target {target}: known are {', '.join(known)}")
    if INTERPRETED:
        raise UserError("TRITON_INTERPRET=1 is set, and the interpreter compiles nothing: unset it for --compile-only")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UserError("--compile-only needs Triton, which is not installed") from error
    if path:
        check_csv(path, Row)
    rows: list[Row] = []
    try:
        for dtype in dtypes:
            for operator, case in cases:
                for target in targets:
                    rows += compile_case(operator, case, dtype, target)
    finally:
        if rows and path:
            replace(path, rows)
    print(table(rows))
    return 0


def compile_case(operator: str, case: str, dtype: torch.dtype, target: str) -> list[Row]:
    """A row for each kernel that a forward and a backward pass launch, in that order.

    Raises:
        UserError: a kernel does not compile; says which case, and why. Triton's interpreter is on.
    """
    import triton

    arguments = make(operator, case, "meta", dtype)
    launch = getattr(import_module(f"vertebra.kernels.{operator}.triton"), operator)
    try:
        with compile_only(target) as kernels:
            launch(**arguments)
    except Exception as error:  # whatever a compiler may raise
        raise UserError(f"{operator}, {case}, for {target}: {say(error)}") from error
    known = origin("cpu", 1)
    where = {key: known[key] for key in ("torch", "vertebra", "commit", "date")}
    common = (operator, case, shape_class(operator, arguments), str(dtype).removeprefix("torch."))
    return [_row(common, kernel, {"triton": triton.__version__, **where}) for kernel in dict.fromkeys(kernels)]


def say(error: Exception) -> str:
    """One line of an error's text: the first, or of Triton's compiler the last, which comes after the kernel's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1 if type(error).__name__ == "CompilationError" else 0][:200] if lines else ""
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _row(common: tuple[str, str, str, str], kernel: Compiled, versions: dict[str, str]) -> Row:
    numbers = (kernel.warps, kernel.registers, kernel.spills, kernel.shared)
    return Row(*common, kernel.target, kernel.name, *numbers, kernel.instructions, **versions)


def replace(path: Path, rows: Sequence[Row]) -> None:
    """Put the rows into a CSV file, in place of those of the same cases, dtypes and targets; sorted as the cases are.

    They are facts of the code and not measurements: what older code took says nothing about this one.
    """
    order = {case: i for i, case in enumerate(find_cases([]))}
    found: list[dict[str, str]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    new = [{key: str(value) for key, value in asdict(row).items()} for row in rows]
    gone = {_key(row) for row in new}
    kept = [row for row in found if _key(row) not in gone and (row["operator"], row["case"]) in order]
    kept = sorted(kept + new, key=lambda row: (order[row["operator"], row["case"]], row["dtype"], row["target"]))
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns(Row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    os.replace(temporary, path)
    print(f"{len(rows)} rows put into {path}")


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("operator", "case", "dtype", "target"))


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first."""
    lines = [("operator", "case", "dtype", "target", "kernel", "uses", "warps", "registers", "spills", "shared")]
    for row in rows:
        numbers = (str(number) for number in (row.warps, row.registers, row.spills, row.shared))
        lines.append((row.operator, row.case, row.dtype, row.target, row.kernel, row.instructions, *numbers))
    first = rows[0]
    head = f"Triton {first.triton}, torch {first.torch}, vertebra {first.vertebra} {first.commit} {first.date}"
    return f"{head}; spills and shared memory in bytes\n{align(lines, left=6)}"
