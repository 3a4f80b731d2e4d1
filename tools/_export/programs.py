"""A classifier, or its feature maps, as a program of PyTorch's own that agrees with it and needs no other package.

torchscript  `torch.jit.load(F)`                       any size from 32x32 up; PyTorch calls TorchScript deprecated
exported     `torch.export.load(F).module()`           a graph that PyTorch's own tools compile, quantise and convert
aoti         `torch._inductor.aoti_load_package(F)`    machine code for this kind of processor or GPU, by AOTInductor

A graph refuses images of a size that it does not hold for. A package looks at its input only where the environment has
AOTI_RUNTIME_CHECK_INPUTS=1: without it, images that are not contiguous float32, or of another size than a fixed one,
may give wrong numbers.

Each file holds `vertebra.json`, what ONNX files hold as metadata; `read_metadata` finds it without running anything.
"""

import contextlib
import copy
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._benchmark.worker import why_not_compiled
from vertebra.tools._classifier import Classifier
from vertebra.tools._export import program_worker
from vertebra.tools._export.checks import STATIC_HINT, Report, check_sizes, compare, first_line, run_pytorch
from vertebra.tools._export.files import check_target, new_file
from vertebra.tools._export.model import FeatureMaps, image_size, metadata, with_names
from vertebra.tools._export.quiet import quiet

METADATA = "vertebra.json"
"""The entry of each file that says what the program is, and how images are prepared for it."""

TRACED = (192, 256)
"""Height and width that a free size is traced with: no map has a side of one pixel, which would stay one for ever."""


@dataclass(frozen=True)
class _Format:
    runtime: str
    suffixes: tuple[str, ...]
    write: Callable[["_Job"], str]


@dataclass(frozen=True)
class _Job:
    """What a format writes: `model` on images of (C, H, W), at that size only or at any; `text` is the metadata."""

    name: str
    model: nn.Module
    size: tuple[int, int, int]
    static: bool
    text: str
    path: Path
    device: torch.device


def check_options(out: Path, kind: str, device: torch.device, opset: int | None = None) -> None:
    """Refuse what cannot be written, before minutes go into an export.

    Raises:
        UserError: `out` has another format's suffix, or must not be written over, or AOTInductor lacks a compiler, or
            there is an `opset`.
    """
    suffixes = FORMATS[kind].suffixes
    if opset is not None:
        raise UserError(f"--opset {opset} is for ONNX; --format {kind} has no such version")
    if out.suffix not in suffixes:  # PyTorch's own loaders know no M.PT2
        raise UserError(f"--out {out} must end in {' or '.join(suffixes)} for --format {kind}")
    check_target(out, lambda path: bool(read_metadata(path)), "program that this tool wrote")
    lacking = _why_no_aoti(device) if kind == "aoti" else None
    if lacking:
        raise UserError(f"--format aoti needs a compiler, and {lacking}; `vertebra doctor` says what to install")


def _why_no_aoti(device: torch.device) -> str | None:
    reason = why_not_compiled("cpu")  # its C++ wrapper is compiled for GPUs, too
    return reason or (why_not_compiled(str(device)) if device.type != "cpu" else None)


def export(
    classifier: Classifier,
    out: str | Path,
    kind: str,
    features: bool = False,
    static: tuple[int, int] | None = None,
) -> Report:
    """Write a program that answers, in a new process without vertebra, as the classifier does.

    Args:
        classifier: the model, with the labels and the image preparation that go into the file.
        out: the file to write; an older export there is replaced, and only by one that passed every check.
        kind: `torchscript`, `exported` or `aoti`.
        features: write what `features_only=True` returns, a list of maps.
        static: height and width to fix; None leaves them free.

    Raises:
        UserError: the file cannot be written, the model cannot be exported, or the results differ.
    """
    out, chosen = Path(out), FORMATS[kind]
    module, names = with_names(classifier, features)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    check_options(out, kind, device)
    channels, *own = image_size(classifier, static)
    text = json.dumps(metadata(classifier, features, (channels, *own)))
    model = _pruned(module) if isinstance(module, FeatureMaps) else module
    size = (channels, *(static or TRACED))
    shapes = [(batch, channels, *(static or side)) for batch, *side in check_sizes(*own)]
    with new_file(out) as temporary:
        expected = [run_pytorch(classifier.name, model, shape, static is not None) for shape in shapes]
        began = time.perf_counter()
        details = chosen.write(_Job(classifier.name, model, size, static is not None, text, temporary, device))
        seconds = time.perf_counter() - began
        hint = "" if static else STATIC_HINT
        answers = _run_fresh(kind, temporary, [images for images, _ in expected], device, hint)
        known = {id(images): answer for (images, _), answer in zip(expected, answers, strict=True)}

        def answer(images: Tensor) -> list[Tensor]:
            """What is known, since a process takes seconds to start, or what another process finds."""
            return known.get(id(images)) or _run_fresh(kind, temporary, [images], device, hint)[0]

        checks = compare(model, answer, expected, chosen.runtime, fixed=static is not None)
        megabytes = temporary.stat().st_size / 1e6
    return Report(out, None, details, megabytes, seconds, tuple(names), static is None, checks, chosen.runtime)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `export` put into a file beside the program, with the keys of ONNX's metadata; {} for any other file."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, ValueError, KeyError), zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(f"/extra/{METADATA}"):
                return json.loads(archive.read(entry))
            if entry.endswith("_metadata.json"):  # AOTInductor's
                return json.loads(json.loads(archive.read(entry))[METADATA])
    return {}


def _pruned(maps: FeatureMaps) -> nn.Module:
    """The same maps from a copy without what lies behind the last of them: a program keeps every weight it is given."""
    return FeatureGetterNet(copy.deepcopy(maps.model), out_indices=maps.indices).eval()


class _OneSize(nn.Module):
    """Refuses images of another size: a script, unlike a graph, has no such condition of its own."""

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.model, self.height, self.width = model, height, width

    def forward(self, x: Tensor):  # the script finds out what comes back: a tensor, or a list of them
        assert x.shape[2] == self.height, "images of another size than was exported"
        assert x.shape[3] == self.width, "images of another size than was exported"
        return self.model(x)


def _write_script(job: _Job) -> str:
    model = _OneSize(job.model, *job.size[1:]).eval() if job.static else job.model
    try:
        with quiet():
            script = torch.jit.script(model)
    except Exception as error:  # the script's compiler raises errors of every kind
        raise UserError(
            f"{job.name} cannot be written as TorchScript: {first_line(error)}; --format exported may do"
        ) from error
    whole = job.path.with_name("with_sources")
    with quiet():
        torch.jit.save(script, whole, _extra_files={METADATA: job.text})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(job.path, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # file names and source lines of this machine
                target.writestr(entry, source.read(entry))
    whole.unlink()
    return f"TorchScript of PyTorch {torch.__version__}"


def _graph(job: _Job) -> torch.export.ExportedProgram:
    """The graph, with a free batch, and free height and width unless the job is static."""
    free = {0: torch.export.Dim("batch", min=1)} | dict.fromkeys(() if job.static else (2, 3), torch.export.Dim.DYNAMIC)
    images = torch.zeros(2, *job.size, device=job.device)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(job.model, (images,), dynamic_shapes=(free,))
    except Exception as error:  # the exporter runs the whole compiler: anything can come out of it
        hint = "" if job.static else STATIC_HINT
        raise UserError(f"{job.name} cannot be exported: {first_line(error)}{hint}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names and source lines of this machine
    return program


def _least(program: torch.export.ExportedProgram) -> str:
    """From which side on the graph holds: a map of one pixel a side is another graph."""
    image = next(iter(program.graph_signature.user_inputs))
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == image)
    free = [side.node.expr for side in value.shape[2:] if isinstance(side, torch.SymInt)]
    return f", sides from {max(int(program.range_constraints[side].lower) for side in free)}" if free else ""


def _write_exported(job: _Job) -> str:
    program = _graph(job)
    with quiet():
        torch.export.save(program, job.path, extra_files={METADATA: job.text})
    return f"{len(program.graph.nodes)} nodes{_least(program)}, PyTorch {torch.__version__}"


def _write_package(job: _Job) -> str:
    program = _graph(job)
    from torch._inductor import aoti_compile_and_package  # seconds to import

    try:
        with quiet():
            aoti_compile_and_package(
                program,
                package_path=str(job.path),
                inductor_configs={"aot_inductor.metadata": {METADATA: job.text}},
            )
    except Exception as error:  # Inductor's and the C++ compiler's
        hint = "" if job.static else STATIC_HINT
        raise UserError(f"AOTInductor cannot compile {job.name}: {first_line(error)}{hint}") from error
    return f"compiled for {job.device.type} by PyTorch {torch.__version__}{_least(program)}"


def _run_fresh(
    kind: str, program: Path, batches: Sequence[Tensor], device: torch.device, hint: str
) -> list[list[Tensor]]:
    """What the program answers in a new process; UserError with the reason where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        images, answers = Path(folder, "images.pt"), Path(folder, "answers.pt")
        torch.save(list(batches), images)
        command = [sys.executable, "-P", program_worker.__file__, kind, program, images, answers, device]
        ended = subprocess.run(
            [*map(str, command), str(torch.get_num_threads())], capture_output=True, text=True, errors="replace"
        )
        if ended.returncode == 0:
            return torch.load(answers, weights_only=True)
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        why = said[-1][:200] if said and ended.returncode > 0 else f"it ended with code {ended.returncode}"
        raise UserError(f"the exported program cannot be run in a new process: {why}; nothing was written{hint}")


FORMATS: Mapping[str, _Format] = {
    "torchscript": _Format("TorchScript in a new process", (".pt", ".ts"), _write_script),
    "exported": _Format("torch.export in a new process", (".pt2",), _write_exported),
    "aoti": _Format("AOTInductor in a new process", (".pt2",), _write_package),
}
"""What `--format` takes beside `onnx`."""
