"""Exported files are either whole and checked or not there, and never take the place of something else."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vertebra.backbones._errors import UserError
from vertebra.tools._common import need
from vertebra.tools._places import check_file

HIDDEN = ".export_onnx_"
"""How names of temporary folders begin, which stand beside what is exported."""


def check_target(out: Path, is_ours: Callable[[Path], bool] | None = None, kind: str = "ONNX file") -> None:
    """Refuse what must not be written over, before minutes go into an export.

    Args:
        out: the file that is to be written.
        is_ours: whether a file that stands there is an older export; `is_onnx` if None.
        kind: what `is_ours` looks for, for the sentence.

    Raises:
        UserError: `out` is a folder, lies below a file, cannot be a file's name, or is a file of another kind; or a
            file stands where large weights would go, and is not the older export's.
    """
    check_file(out, f"--out {out}", "model.onnx")
    if out.exists() and not (is_ours or is_onnx)(out):
        raise UserError(f"--out {out} exists and is no {kind}: choose another name, or move it away")
    data = data_file(out)
    if is_ours is None and data.exists() and not _is_weights(data, out):
        raise UserError(
            f"--out {out}: {data} exists, where weights would go, and is not {out.name}'s: choose another name, or "
            "move it away"
        )


def data_file(out: Path) -> Path:
    """Where the weights of an ONNX file are that is too large to be one."""
    return out.with_name(f"{out.name}.data")


def weight_files(out: Path) -> set[str] | None:
    """Names of the files beside an ONNX file that its weights are in; None for anything but an ONNX file."""
    try:
        onnx = need("onnx", extra="export")
        tensors = onnx.load(out, load_external_data=False).graph.initializer
    except Exception:  # no such file, no package, or one of protobuf's many errors
        return None
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def _is_weights(data: Path, out: Path) -> bool:
    """Whether `out` is an ONNX file that has its weights in `data`."""
    return data.name in (weight_files(out) or ())


def is_whole(out: Path) -> bool:
    """Whether `out` is an ONNX file, and every file with weights of it stands beside it."""
    names = weight_files(out)
    return names is not None and all(out.with_name(name).is_file() for name in names)


def bytes_of(out: Path) -> int:
    """The size of an ONNX file with the weights that lie beside it."""
    return sum(file.stat().st_size for file in (out, data_file(out)) if file.exists())


def is_onnx(path: Path) -> bool:
    """Whether the file is an ONNX model with at least one node."""
    onnx = need("onnx", extra="export")
    try:
        return bool(onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # protobuf has many ways to say that this is something else
        return False


def tell_leftovers(folder: Path) -> None:
    """Name on stderr what a killed export left in a folder: removing it is not safe beside one that runs."""
    left = sorted(path.name for path in folder.glob(f"{HIDDEN}*"))
    if left:
        print(f"{folder} has leftovers of exports that were killed, or still run: {', '.join(left)}", file=sys.stderr)


@contextlib.contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """A block that may make `folder`; what of it and its parents was not there before and is empty is gone after it."""
    made = [each for each in (folder.absolute(), *folder.absolute().parents) if not os.path.exists(each)]
    try:
        yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # something is in it
                each.rmdir()


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path in a temporary folder beside `out`; what is there takes its place when the block ends without an error.

    The path has the name of `out`, so that files with weights beside a model keep the names that the model knows.
    Folders that had to be made are gone after an error.

    Raises:
        UserError: the folder of `out` cannot be made or written to.
    """
    with no_empty_folders(out.parent):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=out.parent))
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
        try:
            yield folder / out.name
            publish(folder / out.name, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(file: Path, out: Path) -> None:
    """Put `file`, and what stands beside it, in the place of `out`; an older export's weights are gone afterwards."""
    new = sorted(file.parent.iterdir(), key=lambda path: path == file)
    data = data_file(out)
    stale = data.exists() and data.name not in [path.name for path in new] and _is_weights(data, out)
    for path in new:  # the weights first: a model file that stands without them cannot be read at all
        os.replace(path, out.with_name(path.name))
    if stale:
        data.unlink()
