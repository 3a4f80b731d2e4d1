"""Data sets of mmdet and mmseg that tell of what is wrong in their files, and go on where that is sensible.

Files that are missing are left out, with one line that counts them; annotations are read as `coco_file` says; suffixes
that the config does not fit are found in the folder. What happens to single samples stands in `dense_samples`.

All of it happens where the runner builds its loaders, so mmdet's and mmseg's own scripts have it too.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from ..backbones._errors import UserError
from .dense_config import walk
from .dense_samples import CheckedMask, CheckedSteps
from .suffixes import settle_suffixes


def checked_loader(loader: Mapping[str, Any], training: bool = True) -> dict[str, Any]:
    """A loader's config whose data sets, inside of whatever repeats or joins them, are built by `build_samples`."""
    return {**loader, "dataset": _checked(loader["dataset"], training)}


def _checked(dataset: Any, training: bool) -> Any:
    if not isinstance(dataset, Mapping):
        return dataset
    if "dataset" in dataset:
        return {**dataset, "dataset": _checked(dataset["dataset"], training)}
    if "datasets" in dataset:
        return {**dataset, "datasets": [_checked(entry, training) for entry in dataset["datasets"]]}
    return {"type": build_samples, "config": dict(dataset), "training": training}


def checked_evaluator(evaluator: Any) -> Any:
    """An evaluator's config in which ours take the place of mmdet's CocoMetric and mmseg's IoUMetric."""
    if isinstance(evaluator, list | tuple):
        return [checked_evaluator(entry) for entry in evaluator]
    if not isinstance(evaluator, Mapping):
        return evaluator
    if evaluator.get("type") in ("IoUMetric", "mmseg.IoUMetric"):
        from . import iou_metric  # noqa: F401  registers it

        return {**evaluator, "type": "ReadIoUMetric"}
    if evaluator.get("type") not in ("CocoMetric", "mmdet.CocoMetric"):
        return evaluator
    if evaluator.get("sort_categories"):  # for Objects365; mmdet sorts them as it reads the file
        return evaluator
    from . import coco_metric  # noqa: F401  registers it

    return {**evaluator, "type": "ReadCocoMetric"}


def build_samples(config: dict[str, Any], training: bool = True) -> Any:
    """A data set from its config, with everything that the module's docstring says; another kind as it is.

    Args:
        config: of the data set.
        training: whether it is trained on. mmseg's data sets do not know that themselves.

    Raises:
        UserError: its files are not there, or not what they should be.
    """
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(config["type"]) if isinstance(config["type"], str) else config["type"]
    if not isinstance(kind, type) or not issubclass(kind, BaseDataset):
        return DATASETS.build(config)
    steps = list(walk(config.get("pipeline") or []))
    masked = any(step.get("with_mask") for step in steps)
    annotated = any("LoadAnnotations" in str(step.get("type")) for step in steps)
    segments = hasattr(kind, "get_label_map")  # mmseg's
    if segments:
        config = {**config, "pipeline": _checked_masks(config.get("pipeline") or [])}
    samples = DATASETS.build({**config, "lazy_init": True})
    if segments:
        settle_suffixes(samples, annotated)
    files = ("img_path", "seg_map_path") if segments and annotated else ("img_path",)
    training = training and not samples.test_mode
    counts, rest = _read_files(samples, files, masked, training)
    logger = MMLogger.get_current_instance()
    for found, level in ((counts, logging.WARNING), (rest, logging.INFO)):
        if found:
            logger.log(level, f"{_place(samples)}: {_told(found)}")
    samples.missing = sum(count for why, count in counts.items() if " missing in " in why)
    samples.pipeline = CheckedSteps(samples.pipeline, samples, training)
    return samples


def _place(samples: Any) -> str:
    """The file or folder that a data set is read from, for messages."""
    return str(samples.ann_file or samples.data_prefix.get("img_path") or samples.data_root)


def _told(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{why}: {count}" for why, count in counts.items())


def _checked_masks(steps: Any) -> Any:
    """A pipeline's config in which `CheckedMask` stands around each of mmseg's LoadAnnotations."""
    if isinstance(steps, list | tuple):
        return [_checked_masks(step) for step in steps]
    if not isinstance(steps, Mapping):
        return steps
    if steps.get("type") in ("LoadAnnotations", "mmseg.LoadAnnotations"):
        return {"type": CheckedMask, "load": dict(steps)}
    return {key: _checked_masks(value) if key == "transforms" else value for key, value in steps.items()}


def _read_files(
    samples: Any, files: tuple[str, ...], masked: bool, training: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Let a data set read its annotations; what is wrong in them, and what the config asks to leave out."""
    counts: dict[str, int] = {}
    rest: dict[str, int] = {}
    filter_data = samples.filter_data

    def present() -> list[dict[str, Any]]:
        entries = filter_data()
        if dropped := len(samples.data_list) - len(entries):
            rest["images without an object, or too small, left out (filter_cfg)"] = dropped
        entries = entries if getattr(samples, "backend_args", None) else list(_with_files(entries, files, counts))
        if not entries:
            use = "train on" if training else "evaluate"
            raise UserError(f"{_place(samples)} gives no image to {use}: {_told(counts | rest) or 'it lists none'}")
        return entries

    samples.filter_data = present
    if "COCOAPI" in dir(samples):
        _mend_annotations(samples, masked, training, counts)
    try:
        samples.full_init()
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f"{_place(samples)} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        for name in ("filter_data", "COCOAPI"):
            samples.__dict__.pop(name, None)
    return counts, rest


def _mend_annotations(samples: Any, masked: bool, training: bool, counts: dict[str, int]) -> None:
    """Let mmdet's CocoDataset read its file through `MendedCoco`; others, as LVIS, have a reader of their own."""
    from .coco_metric import COCO, MendedCoco

    def read(file: str) -> MendedCoco:
        coco = MendedCoco(file, masked, training)
        counts.update(coco.counts)
        if not coco.anns and training:
            raise UserError(f"{file} has no annotation that can be trained on: {_told(coco.counts) or 'it lists none'}")
        return coco

    if samples.COCOAPI is COCO:
        samples.COCOAPI = read


def _with_files(
    entries: list[dict[str, Any]], files: tuple[str, ...], counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """The samples whose files are there; one look into each folder tells, not one for each file."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        for key in files:
            folder, name = os.path.split(entry.get(key) or "")
            if "://" in folder or not name:
                continue
            if folder not in found:
                found[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
            if name not in found[folder]:
                what = "images" if key == "img_path" else "masks"
                why = f"{what} missing in {folder}, left out"
                counts[why] = counts.get(why, 0) + 1
                break
        else:
            yield entry
