"""Does an exported file answer as PyTorch does? Comparisons in standard deviations of the output, and their report.

Where an output is nearly constant, a hundredth of its largest value stands in for its standard deviation: `difference`.

A model that chooses, as BiFormer's routing does, may find two candidates so close that rounding decides: any two
runtimes then differ, and PyTorch from itself. `is_settled` tells such images from wrong graphs, and other images take
their place.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError

TOLERANCE = 1e-4
"""How far an exported file may be from PyTorch, in standard deviations of the output."""

CHECKS = ((3, 171, 259), (2, 203, 333))
"""Batch, height and width of the comparisons: two odd, oblong sizes, neither of them the traced one."""

TRIES = 5
"""Images that a size is compared on at most, where rounding decides on the first ones."""

NUDGE, NUDGES = 3e-7, 8
"""How far weights are moved to look like rounding (float32 keeps 6e-8), and how many times."""

STATIC_HINT = "; --static HxW may do where a free size does not"
"""What a sentence about a file of free sizes ends with."""

Expected = tuple[Tensor, list[Tensor]]
"""Images (B, C, H, W) and what the model answers to them."""

Answer = Callable[[Tensor], Sequence[Tensor]]
"""A runtime with an exported file: images (B, C, H, W) -> its outputs."""

Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
"""How far the outputs found are from those expected; infinite where they cannot be compared."""


@dataclass(frozen=True)
class Check:
    """One comparison: images (B, C, H, W), and `difference` of the outputs."""

    shape: tuple[int, ...]
    difference: float
    passed_over: int = 0
    """Images of this shape, before these, of which rounding decides what the model answers."""

    def __str__(self) -> str:
        return f"  {'x'.join(map(str, self.shape)):>14}  {self.difference:.1e}{passed_over_note(self.passed_over)}"


def passed_over_note(passed_over: int) -> str:
    """The images that a comparison passed over, to be read after its result; nothing where there are none."""
    return f"  ({passed_over} passed over, since rounding decides there what the model chooses)" if passed_over else ""


@dataclass(frozen=True)
class Report:
    """What was written and how well `runtime` agrees with PyTorch; `difference` is the largest of the checks."""

    file: Path
    data_file: Path | None
    """Where the weights are, if one file would have been too large."""
    details: str
    """What is particular to the format: `opset 18, 432 nodes`, say."""
    megabytes: float
    seconds: float
    outputs: tuple[str, ...]
    free_size: bool
    checks: list[Check] = field(default_factory=list)
    runtime: str = "ONNX Runtime"
    notes: tuple[str, ...] = ()
    """More lines to print."""

    @property
    def difference(self) -> float:
        return max(check.difference for check in self.checks)

    def __str__(self) -> str:
        beside = f" and, as it is too large for one file, {self.data_file} (keep the two together)"
        sizes = ", height and width" if self.free_size else " (fixed size)"
        lines = [
            f"{self.file}{beside if self.data_file else ''}: {self.megabytes:.1f} MB, {self.details}, "
            f"free batch{sizes}, exported in {self.seconds:.1f} s",
            f"outputs: {', '.join(self.outputs)}",
            f"{self.runtime} against PyTorch, float32; largest difference, in standard deviations of the output "
            "or, where those are larger, hundredths of its largest value:",
            *map(str, self.checks),
            *self.notes,
        ]
        return "\n".join(lines)


def check_sizes(height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Batch, height and width of all comparisons: `CHECKS`, and a single image of the given size.

    Larger batches alone would not show a graph that cannot take one image.
    """
    return *CHECKS, (1, height, width)


def run_pytorch(name: str, model: nn.Module, shape: tuple[int, ...], fixed: bool = False) -> Expected:
    """Images of a shape, the same ones every time, and the model's outputs on them, all on the CPU.

    `fixed`: this is the one size that was asked for, so that no other is advised.

    Raises:
        UserError: the model does not take images of this size.
    """
    with running(name, shape, fixed):
        images = noise(shape)
        return images, _outputs(model, images)


@contextlib.contextmanager
def running(name: str, shape: Sequence[int], fixed: bool = False) -> Iterator[None]:
    """A block that runs a model on images (..., H, W): what PyTorch cannot do is a `UserError`; `fixed` as above."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        size = "x".join(map(str, shape[-2:]))
        hint = "" if fixed else STATIC_HINT
        raise UserError(f"{name} cannot run on an image of {size} ({first_line(error)}){hint}") from error


def noise(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Images (B, C, H, W) of normally distributed noise, the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode(), _full_float32():
        answer = model(images.to(device))
    return [x.cpu() for x in ((answer,) if isinstance(answer, Tensor) else answer)]


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keep GPUs from rounding the inputs of matrix products and convolutions to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def compare(
    model: nn.Module, answer: Answer, expected: Sequence[Expected], runtime: str = "ONNX Runtime", fixed: bool = False
) -> list[Check]:
    """A runtime's answers against a model's.

    Args:
        model: who answered in PyTorch.
        answer: the runtime, with the exported file.
        expected: what `run_pytorch` returned of the model, a pair for each size.
        runtime: who answers, for the sentences.
        fixed: as of `run_pytorch`.

    Raises:
        UserError: the runtime fails, or differs by more than the tolerance.
    """
    asked, checks, hint = guarded(answer, runtime, fixed), [], "" if fixed else STATIC_HINT
    for images, outputs in expected:
        far, _, passed_over = settled_distance(model, asked, (images, outputs), _largest, TOLERANCE)
        checks.append(Check(tuple(images.shape), far, passed_over))
    worst = max(checks, key=lambda check: check.difference)
    if not worst.difference <= TOLERANCE:
        shape = "x".join(map(str, worst.shape))
        raise UserError(
            f"{runtime} differs from PyTorch by {worst.difference:.1e} of the output's standard deviation at {shape}, "
            f"more than {TOLERANCE:.0e}{unsettled_note(worst.passed_over)}: nothing was written{hint}"
        )
    return checks


def guarded(answer: Answer, runtime: str = "ONNX Runtime", fixed: bool = False) -> Answer:
    """The same runtime, whose failures are a `UserError` each; `runtime` and `fixed` as of `compare`."""

    def ask(images: Tensor) -> Sequence[Tensor]:
        try:
            return answer(images)
        except UserError:
            raise
        except Exception as error:  # runtimes raise classes of their own, without a common base
            hint = "" if fixed else STATIC_HINT
            raise UserError(f"{runtime} cannot run the exported file: {first_line(error)}{hint}") from error

    return ask


def unsettled_note(passed_over: int) -> str:
    """What a refusal adds where rounding decided on every image; nothing where there was a settled one."""
    reason = f"; rounding alone moves PyTorch's own answer on all of {TRIES} random images"
    return reason if passed_over == TRIES else ""


def settled_distance(
    model: nn.Module, answer: Answer, expected: Expected, distance: Distance, most: float
) -> tuple[float, Sequence[Tensor], int]:
    """How far a runtime is from a model, on other images of that shape where the model is not settled on these.

    Args:
        model: who answered in PyTorch.
        answer: the runtime.
        expected: what `run_pytorch` returned of the model.
        distance: between the outputs of both.
        most: what the distance may be.

    Returns:
        The distance, the model's outputs that it is from, and how many images were passed over: `TRIES` where the model
        is settled on none.
    """
    images, outputs = expected
    for passed_over in range(TRIES):
        if passed_over:
            images = noise(images.shape, seed=passed_over)
            outputs = _outputs(model, images)
        far = distance(answer(images), outputs)
        may_be_rounding = most < far < math.inf
        if not may_be_rounding or is_settled(model, images, outputs, distance, most):
            return far, outputs, passed_over
    return far, outputs, TRIES


def is_settled(model: nn.Module, images: Tensor, outputs: Sequence[Tensor], distance: Distance, most: float) -> bool:
    """Whether `outputs` stay within half of `most` where each weight is moved by about what rounding may.

    Args:
        model: in eval mode; it stays as it is.
        images: (B, C, H, W).
        outputs: what the model answers to them.
        distance: between two answers.
        most: what the distance of a runtime may be.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUDGES):
        nudged = copy.deepcopy(model)
        with torch.no_grad():
            for weight in nudged.parameters():
                weight.mul_(1 + NUDGE * (2 * torch.rand(weight.shape, generator=generator) - 1).to(weight.device))
        if not distance(_outputs(nudged, images), outputs) <= most / 2:
            return False
    return True


def _largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(difference(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


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


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
