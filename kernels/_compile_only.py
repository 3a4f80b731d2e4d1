"""Compile kernels for a GPU that is not there, and look at what they would take of it.

    with compile_only("sm_90") as kernels:
        triton.forward(*meta_tensors_of_the_real_shapes)
    kernels[0].registers

Triton brings NVIDIA's assembler along, so that sizes, dtypes and divisibility are those of a real launch; only the
launch itself is left out.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _triton

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that one program may take, by compute capability."""


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes: `registers` of a thread, `spills` (bytes of a thread's stack), `shared` memory in bytes.

    `instructions`: of tensor cores, "wgmma" or "mma"; "" where there are none.
    """

    name: str
    target: str
    warps: int
    registers: int
    spills: int
    shared: int
    instructions: str


@contextmanager
def compile_only(target: str) -> Iterator[list[Compiled]]:
    """Within the context, launches compile for `target` ("sm_80", "sm_90" ...), and are listed.

    Raises:
        ValueError: a target that is none.
        RuntimeError: Triton's interpreter is on, which compiles nothing.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    found = re.fullmatch(r"sm_(\d+)", target)
    if not found:
        raise ValueError(f"target is {target!r}; it takes sm_80, sm_90 and the like")
    if _triton.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1 is set: the interpreter compiles nothing")
    stub, kernels = _Stub(GPUTarget("cuda", int(found[1]), 32)), []

    def compile_it(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        kernel.device_caches.clear()  # they know devices by number, and ours has always the same
        compiled = kernel.run(*arguments, grid=(1,), warmup=True, **constants)
        kernel.device_caches.clear()
        kernels.append(_look_at(compiled, target))

    active, _triton.compiler = driver._active, compile_it
    driver.set_active(stub)
    try:
        yield kernels
    finally:
        driver._active, _triton.compiler = active, None


class _Stub:
    """As much of a driver as a compilation asks for."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _look_at(compiled: Any, target: str) -> Compiled:
    import triton.backends.nvidia

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
        usage = subprocess.check_output([tool, "-res-usage", file.name], text=True, stderr=subprocess.STDOUT)
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    return Compiled(
        name=compiled.metadata.name,
        target=target,
        warps=compiled.metadata.num_warps,
        registers=used["REG"],
        spills=used["STACK"],
        shared=compiled.metadata.shared,
        instructions="wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "",
    )
