"""Export a classifier or a feature pyramid to ONNX and compare it with PyTorch.

The file has a free batch, and free height and width unless `--static` fixes them. It counts as exported when ONNX's
checker takes it, it holds standard operators only and none that is random, and ONNX Runtime answers as PyTorch does in
float32, at sizes and batch sizes other than the traced one. Until then it stands under a temporary name.

Input    `image` (batch, channels, height, width) float32, normalised with the file's `mean` and `std`
Output   `logits` (batch, classes), or with `--features` maps (batch, C, height/4, width/4) `stride4`, `stride8` ...
Metadata JSON values: model_name, task, labels, input_size, interpolation, crop_pct, crop_mode, mean, std, vertebra
"""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from vertebra import __version__
from vertebra.backbones._errors import UserError
from vertebra.kernels.dispatch import VARIABLE
from vertebra.tools._classifier import Classifier, load_classifier
from vertebra.tools._common import make_parser, need, pick_device, run_tool

TOLERANCE = 1e-4
"""How far ONNX Runtime may be from PyTorch, in standard deviations of the output."""

CHECKS = ((3, 171, 259), (2, 203, 333))
"""Batch, height and width of the comparisons: two odd, oblong sizes, neither of them the traced one."""

ONE_FILE_LIMIT = 2**31 - 2**24
"""Bytes of weights above which they go beside the file; protobuf ends at 2 GiB, and the graph wants some room."""

LOWEST_OPSET = 18  # what PyTorch's exporter writes natively; its conversion downwards fails on most networks
_RANDOM = re.compile(r"Random|Bernoulli|Multinomial|Dropout")


@dataclass(frozen=True)
class Check:
    """One comparison: images (B, C, H, W), the largest difference over the output's standard deviation."""

    shape: tuple[int, int, int, int]
    difference: float


@dataclass(frozen=True)
class Report:
    """What was written and how well ONNX Runtime agrees with PyTorch; `difference` is the largest of the checks."""

    file: Path
    data_file: Path | None
    opset: int
    nodes: int
    megabytes: float
    seconds: float
    outputs: tuple[str, ...]
    free_size: bool
    checks: list[Check] = field(default_factory=list)

    @property
    def difference(self) -> float:
        return max(check.difference for check in self.checks)

    def __str__(self) -> str:
        beside = f" and, as it is too large for one file, {self.data_file} (keep the two together)"
        sizes = ", height and width" if self.free_size else " (fixed size)"
        lines = [
            f"{self.file}{beside if self.data_file else ''}: {self.megabytes:.1f} MB, opset {self.opset}, "
            f"{self.nodes} nodes, free batch{sizes}, exported in {self.seconds:.1f} s",
            f"outputs: {', '.join(self.outputs)}",
            "ONNX Runtime against PyTorch, float32; largest difference in standard deviations of the output:",
            *(f"  {'x'.join(map(str, check.shape)):>14}  {check.difference:.1e}" for check in self.checks),
        ]
        return "\n".join(lines)


class _FeatureMaps(nn.Module):
    """What `features_only` returns, from a whole model with its weights: image -> a tuple of (B, C, H, W)."""

    def __init__(self, model: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.model, self.indices = model, indices

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: Any = self.model.forward_intermediates  # nn.Module types every attribute as a tensor or module
        return tuple(maps(x, indices=self.indices, intermediates_only=True))


def build_parser() -> argparse.ArgumentParser:
    """The command line of `export_onnx`."""
    parser = make_parser(
        "export_onnx",
        "Export a model to ONNX with free batch, height and width, and compare ONNX Runtime with PyTorch.",
        "vertebra export_onnx van_b0 --checkpoint work_dirs/demo/epoch_18.pth --out van_b0.onnx",
    )
    device = next(action for action in parser._actions if action.dest == "device")
    device.default, device.help = "cpu", "where PyTorch runs; the file is the same (default: cpu)"
    parser.add_argument("name", metavar="NAME|CONFIG", help="a model (`vertebra list`), or a classifier's config")
    parser.add_argument("--checkpoint", metavar="F", help="weights, or `pretrained` (default: fresh, random weights)")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="the file to write")
    parser.add_argument("--features", action="store_true", help="export the feature maps instead of the classifier")
    parser.add_argument("--static", metavar="HxW", help="fix height and width, where a model cannot do without")
    parser.add_argument("--opset", type=int, metavar="N", help="version of the ONNX operators (default: PyTorch's own)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    static = parse_size(args.static) if args.static else None
    device = pick_device(args.device)
    if os.environ.get(VARIABLE) == "triton":
        os.environ[VARIABLE] = "eager"  # a graph has plain PyTorch in it, and is compared with that
    _check_packages()
    _check_target(args.out)
    classifier = _load(args.name, args.checkpoint, device)
    if args.checkpoint is None:
        print(f"{args.name}: no --checkpoint given, the file gets fresh, random weights", file=sys.stderr)
    print(export(classifier, args.out, args.features, static, args.opset))
    return 0


def _load(name: str, checkpoint: str | None, device: torch.device) -> Classifier:
    """The classifier of a name, or of a config; mm* packages are needed for a config alone."""
    if "/" not in name and not name.endswith(".py"):
        return load_classifier(name, checkpoint, device=device)
    need("mmengine", extra="train")
    need("cv2", extra="train")
    import vertebra.engine  # noqa: F401  registers what configs name
    from mmengine.registry import MODELS
    from vertebra.engine.config import check_model, read_config

    config = read_config(name)
    check_model(config)
    if "model_name" not in config.model:
        raise UserError(f"config {name} is of a {config.model.get('type')}; a classifier's config can be exported")
    if checkpoint is not None:
        return load_classifier(config.model.model_name, checkpoint, device=device)
    return Classifier(config.model.model_name, MODELS.build(config.model).backbone.to(device))


def parse_size(text: str) -> tuple[int, int]:
    """`224x320` -> (224, 320), height first; UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if not match:
        raise UserError(f"{text!r} is not a size; height and width are written as 224x320")
    return int(match[1]), int(match[2])


def export(
    classifier: Classifier,
    out: str | Path,
    features: bool = False,
    static: tuple[int, int] | None = None,
    opset: int | None = None,
) -> Report:
    """Write a classifier, or its feature maps, as an ONNX file that agrees with it.

    Args:
        classifier: the model, with the labels and the image preparation that go into the file's metadata.
        out: the file to write; an ONNX file that stands there is replaced, and only by one that passed every check.
        features: export what `features_only=True` returns, each map named by its stride.
        static: height and width to fix; None leaves them free.
        opset: version of the standard operators, 18 or newer; None takes PyTorch's default.

    Raises:
        UserError: the file cannot be written, the model or the options cannot be exported, or the results differ.
    """
    onnx, out = _check_packages(), Path(out)
    if opset is not None and not LOWEST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise UserError(f"--opset {opset} cannot be written; from {LOWEST_OPSET} to {newest} is what is supported")
    _check_target(out)
    model, names = _with_names(classifier, features)
    channels, traced = _image_size(classifier, static)
    shapes = [(batch, channels, *(static or size)) for batch, *size in CHECKS]
    with _new_file(out) as temporary:
        expected = [_run_pytorch(classifier.name, model, shape) for shape in shapes]
        began = time.perf_counter()
        program = _trace(classifier.name, model, torch.zeros(2, channels, *traced), names, static is None, opset)
        _describe(program, classifier, features, (channels, *traced))
        data_file = _save(program, temporary)
        seconds = time.perf_counter() - began
        nodes, found_opset = _check_graph(temporary, opset)
        checks = _compare(temporary, expected)
        size = sum(path.stat().st_size for path in temporary.parent.iterdir())
    return Report(
        out,
        out.with_name(data_file.name) if data_file else None,
        found_opset,
        nodes,
        size / 1e6,
        seconds,
        tuple(names),
        static is None,
        checks,
    )


def _check_packages() -> Any:
    """The module onnx; UserError if it, the exporter's library or ONNX Runtime is missing."""
    for module in ("onnxscript", "onnxruntime"):
        need(module, extra="export")
    return need("onnx", extra="export")


def _check_target(out: Path) -> None:
    """Refuse what must not be written over, before minutes go into an export."""
    try:
        there, folder = out.exists(), out.is_dir()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"--out {out} cannot be written: {nearest} is no folder")
    if folder:
        raise UserError(f"--out {out} is a folder, but must name a file: {out / 'model.onnx'}, say")
    if there and not _is_onnx(out):
        raise UserError(f"--out {out} exists and is no ONNX file: choose another name, or move it away")


def _is_onnx(path: Path) -> bool:
    onnx = need("onnx", extra="export")
    try:
        return bool(onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # protobuf has many ways to say that this is something else
        return False


@contextlib.contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """A path in a temporary folder beside `out`; what is there takes its place when the block ends without an error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export_onnx_", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    try:
        yield folder / out.name
        # the weights first: a model file that stands without them cannot be read at all
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.with_name(path.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _image_size(classifier: Classifier, static: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """Channels of the image, and the height and width to trace with."""
    first = next((p for p in classifier.model.parameters() if p.ndim == 4), None)
    channels = getattr(classifier.model, "in_chans", None) or (3 if first is None else first.shape[1])
    return channels, static or tuple(classifier.data["input_size"][-2:])


def _with_names(classifier: Classifier, features: bool) -> tuple[nn.Module, list[str]]:
    """The module to trace, in float32 and eval mode, and the names of its outputs."""
    model = classifier.model.float().eval()
    if not features:
        if not model.num_classes:
            raise UserError(f"{classifier.name} has no classifier here: --features exports its maps")
        return model, ["logits"]
    try:
        info: Any = timm.create_model(
            classifier.name, features_only=True, device="meta", **classifier.options
        ).feature_info
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{classifier.name} offers no feature maps: {_first_line(error)}") from error
    strides = info.reduction()
    names = [f"stride{s}" if strides.count(s) == 1 else f"map{i}_stride{s}" for i, s in enumerate(strides)]
    return _FeatureMaps(model, list(info.out_indices)).eval(), names


def _run_pytorch(name: str, model: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """Images of a shape, the same ones every time, and the model's outputs on them, all on the CPU."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode(), _full_float32():
            answer = model(images.to(device))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = "x".join(map(str, shape[2:]))
        raise UserError(
            f"{name} cannot run on an image of {size} ({_first_line(error)}); --static HxW exports it for one size"
        ) from error
    return images, [x.cpu() for x in ((answer,) if isinstance(answer, Tensor) else answer)]


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keep GPUs from rounding the inputs of matrix products and convolutions to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _trace(name: str, model: nn.Module, images: Tensor, outputs: list[str], free_size: bool, opset: int | None) -> Any:
    """PyTorch's ONNXProgram of the model; UserError with the exporter's own reason where it fails."""
    free = {0: "batch", 2: "height", 3: "width"} if free_size else {0: "batch"}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                model,
                (images.to(device),),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=["image"],
                output_names=outputs,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter runs the whole compiler: anything can come out of it
        hint = "; --static HxW may do where a free size does not" if free_size else ""
        raise UserError(f"{name} cannot be exported: {_first_line(error.__cause__ or error)}{hint}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what PyTorch's exporter says on its way: warnings, log lines, and print-outs."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as null:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                yield
    finally:
        logging.disable(level)


def _describe(program: Any, classifier: Classifier, features: bool, input_size: tuple[int, ...]) -> None:
    """Put into the file what a reader needs beside the graph, and take out the exporter's traces of this machine."""
    data = classifier.data
    entries = {
        "model_name": classifier.name,
        "task": "features" if features else "classification",
        "labels": [] if features else classifier.labels,
        "input_size": input_size,
        **{key: data[key] for key in ("interpolation", "crop_pct", "crop_mode", "mean", "std")},
        "vertebra": __version__,
    }
    program.model.metadata_props.update({key: json.dumps(value) for key, value in entries.items()})
    for part in (program.model.graph, *program.model.graph.all_nodes(), *program.model.graph.initializers.values()):
        part.metadata_props.clear()  # file names and source lines for every node


def _save(program: Any, path: Path) -> Path | None:
    """Write the file; returns the second one, with the weights, where one file would be too large."""
    large = sum(value.const_value.nbytes for value in program.model.graph.initializers.values()) > ONE_FILE_LIMIT
    with _quiet():
        program.save(path, external_data=large)
    return path.with_name(f"{path.name}.data") if large else None


def _check_graph(path: Path, opset: int | None) -> tuple[int, int]:
    """Number of nodes and opset; UserError for a file that ONNX or a plain runtime for inference would not take."""
    onnx = need("onnx", extra="export")
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"the exported file is no valid ONNX: {_first_line(error)}") from error
    model = onnx.load(path, load_external_data=False)
    nodes = list(model.graph.node)
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise UserError(f"the exported file needs operators outside the standard: {', '.join(foreign)}")
    random = sorted({node.op_type for node in nodes if _RANDOM.search(node.op_type)})
    if random:
        raise UserError(f"the exported file draws random numbers or belongs to training: {', '.join(random)}")
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and found != opset:
        raise UserError(f"--opset {opset}: the exporter could not convert this model, and wrote opset {found}")
    return len(nodes), found


def _compare(path: Path, expected: Sequence[tuple[Tensor, list[Tensor]]]) -> list[Check]:
    """ONNX Runtime's answers against the expected ones; UserError where they differ by more than the tolerance."""
    runtime = need("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    checks = []
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for images, answers in expected:
            found = session.run(None, {"image": images.numpy()})
            pairs = zip(map(torch.from_numpy, found), answers, strict=True)
            checks.append(Check(tuple(images.shape), max(difference(ours, theirs) for ours, theirs in pairs)))
    except Exception as error:  # ONNX Runtime raises classes of its own, without a common base
        raise UserError(f"ONNX Runtime cannot run the exported file: {_first_line(error)}") from error
    worst = max(checks, key=lambda check: check.difference)
    if not worst.difference <= TOLERANCE:
        raise UserError(
            f"ONNX Runtime differs from PyTorch by {worst.difference:.1e} of the output's standard deviation at "
            f"{'x'.join(map(str, worst.shape))}, more than {TOLERANCE:.0e}: nothing was written"
        )
    return checks


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference in standard deviations of `expected`; infinite for other shapes and for what is no number.

    Outputs that are nearly constant are measured by a hundredth of their largest value instead: below that, the
    tolerance would ask for more digits than float32 has. All zeros equal all zeros.
    """
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    found, expected = found.double(), expected.double()
    largest = (found - expected).abs().max().item()
    scale = max(expected.std(correction=0).item(), expected.abs().max().item() / 100)
    return largest / scale if scale else (float("inf") if largest else 0.0)


def read_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """What `export` wrote beside the graph, from ONNX Runtime's `get_modelmeta().custom_metadata_map`."""
    known = {}
    for key, value in properties.items():
        with contextlib.suppress(ValueError):
            known[key] = json.loads(value)
    return known


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(run_tool(main))
