"""mmdet and mmseg without what they say on the terminal that no user can change, and nothing hangs on."""

import contextlib
import importlib
import io
import warnings

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
