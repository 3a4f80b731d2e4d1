"""Where tools write: a place that cannot be written to is refused before anything is computed."""

import tempfile
from pathlib import Path

from vertebra.backbones._errors import UserError


def check_folder(out: Path, asked: str) -> None:
    """Refuse a folder that nothing can be written into, or that cannot be made.

    Args:
        out: the folder, which need not exist.
        asked: how it was asked for: `--out pictures`.

    Raises:
        UserError: `out` or what it would lie in is a file or takes no files, or it cannot be a folder's name.
    """
    try:
        nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"{asked} cannot be written: {error.strerror or error}") from error
    if not nearest.is_dir():
        raise UserError(f"{asked} cannot be written: {nearest} is no folder")
    try:
        tempfile.TemporaryFile(dir=nearest).close()  # rights alone do not tell of a disk that is full or read-only
    except OSError as error:
        raise UserError(f"{asked} cannot be written: {nearest} takes no files ({error.strerror or error})") from error


def check_file(out: Path, asked: str, example: str) -> None:
    """Refuse a path that no file can be written to.

    Args:
        out: the file, which need not exist, nor its folder.
        asked: how it was asked for: `--out m.json`.
        example: a name of such a file, for the sentence.

    Raises:
        UserError: `out` is a folder, lies below a file, or cannot be a file's name.
    """
    check_folder(out.parent, asked)
    try:
        folder = out.is_dir()
        out.exists()  # of a name that is too long, `is_dir` says no more than that it is no folder
    except OSError as error:
        raise UserError(f"{asked} cannot be written: {error.strerror or error}") from error
    if folder:
        raise UserError(f"{asked} is a folder; the name of a file is accepted: {out / example}, say")
