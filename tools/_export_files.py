"""Exported files are either whole and checked or not there, and never take the place of something else."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vertebra.backbones._errors import UserError
from vertebra.tools._common import need


def check_target(out: Path, is_ours: Callable[[Path], bool] | None = None, kind: str = "ONNX file") -> None:
    """Refuse what must not be written over, before minutes go into an export.

    Args:
        out: the file that is to be written.
        is_ours: whether a file that stands there is an older export; `is_onnx` if None.
        kind: what `is_ours` looks for, for the sentence.

    Raises:
        UserError: `out` is a folder, lies below a file, cannot be a file's name, or is a file of another kind.
    """
    try:
        there, folder = out.exists(), out.is_dir()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"--out {out} cannot be written: {nearest} is no folder")
    if folder:
        raise UserError(f"--out {out} is a folder, but must name a file: {out / 'model.onnx'}, say")
    if there and not (is_ours or is_onnx)(out):
        raise UserError(f"--out {out} exists and is no {kind}: choose another name, or move it away")


def is_onnx(path: Path) -> bool:
    """Whether the file is an ONNX model with at least one node."""
    onnx = need("onnx", extra="export")
    try:
        return bool(onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # protobuf has many ways to say that this is something else
        return False


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path in a temporary folder beside `out`; what is there takes its place when the block ends without an error.

    The path has the name of `out`, so that files with weights beside a model keep the names that the model knows.

    Raises:
        UserError: the folder of `out` cannot be made or written to.
    """
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
