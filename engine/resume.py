"""Which checkpoint of a work dir to go on from: the newest that is whole."""

import logging
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

from ..backbones._checkpoint import check_archive, read_checkpoint
from ..backbones._errors import UserError


def checkpoint_files(work_dir: Path) -> list[Path]:
    """The checkpoints that a run can be resumed from, newest first."""
    files = [*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_whole(work_dir: Path, logger: logging.Logger) -> str | None:
    """The newest checkpoint that can be read, the same in all processes; None where there is none at all.

    The first process reads, and names to `logger` what it passes over; a process that read for itself could come to
    another answer.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    found: list[str | None] = [None, None]
    if is_main_process():
        found = _look(work_dir, logger)
    broadcast_object_list(found)
    path, wrong = found
    if wrong:
        raise UserError(wrong)
    return path


def _look(work_dir: Path, logger: logging.Logger) -> list[str | None]:
    """The checkpoint, if there is one, and what is wrong, if none can be read."""
    files = checkpoint_files(work_dir)
    for path in files:
        try:
            check_archive(path)
            read_checkpoint(path)
        except UserError as error:
            logger.warning(f"{error}; trying the one before it")
        else:
            return [str(path), None]
    return [None, f"none of the {len(files)} checkpoints in {work_dir} can be read" if files else None]
