"""Files that are either whole or not there: weights, pictures, numbers."""

import contextlib
import os
from pathlib import Path

TEMPORARY = ".tmp"


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that `path` holds all of it or what it held before, whatever happens in between.

    The folder is made if need be. What a kill leaves behind is a hidden file that ends with `TEMPORARY`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
