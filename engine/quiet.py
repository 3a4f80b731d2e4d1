"""mmengine, mmdet and mmseg without what they say on the terminal that no user can change, and nothing hangs on."""

import contextlib
import importlib
import io
import logging
import warnings
from pathlib import Path

from mmengine.dist import is_main_process

_WARNINGS = (
    "faster_coco_eval is not installed",  # a metric of another name than the one that is used
    "The draw is False, it means",  # pictures are drawn by `infer`
    "Default ``avg_non_ignore`` is False",  # as every published segmenter was trained
    "For binary segmentation, we suggest",  # two classes are two classes
)


def import_quietly(scope: str) -> None:
    """Import the data sets and metrics of mmdet or mmseg, which tell that a package of their makers is missing.

    Where they are not installed nothing happens: who needs them says so.
    """
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(ImportError):
        importlib.import_module(f"{scope}.datasets")
        importlib.import_module(f"{scope}.evaluation")
    for line in said.getvalue().splitlines():
        if not line.startswith("Could not import OneDL"):
            print(line)


def calm(logger: logging.Logger, log_level: int | str) -> None:
    """Give the terminal our warnings and all errors; mmengine warns of much that no user can change.

    All of it is in the log file. Of several processes, the first one speaks.
    """
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler and log_level != "DEBUG":
            handler.setLevel(logging.WARNING)
            handler.addFilter(_ours_or_error if is_main_process() else _error)
            handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        elif isinstance(handler, logging.FileHandler):
            handler.handleError = lambda record: None  # a full disk is said once, by what ends the run


def _ours_or_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or Path(record.pathname).parent == Path(__file__).parent


def _error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
