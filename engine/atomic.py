"""Checkpoint files that are either whole or not there, as a file backend of mmengine.

`CheckpointHook(backend_args=dict(backend="atomic"))` writes through it. A file is written under a temporary name, put
on the disk and renamed, so a kill or a full disk at any moment leaves the older files as they were. What the hook wants
removed to make room is removed only after the next file has been written whole.
"""

from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend, register_backend

from ..backbones._files import TEMPORARY, write_whole


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was in the middle of writing."""
    for path in (*folder.glob(f".*.pth.*{TEMPORARY}"), *folder.glob(f".last_checkpoint.*{TEMPORARY}")):
        path.unlink(missing_ok=True)


@register_backend("atomic")
class AtomicLocalBackend(LocalBackend):
    """mmengine's local backend with `put` in one piece and `remove` after the next `put`."""

    _to_remove: ClassVar[list[str]] = []  # shared: mmengine makes a new backend object for each call

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write `obj` whole, then remove what had been given to `remove`."""
        path = Path(filepath)
        write_whole(path, obj)
        while self._to_remove:
            old = self._to_remove.pop()
            if Path(old) != path:
                Path(old).unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        """Remember to remove `filepath` once a newer file is whole."""
        self._to_remove.append(str(filepath))
