"""Configs of detectors and segmenters: another backbone, another data folder, classes of one's own.

What a config leaves open follows from what it is given: the channels of neck and heads from the backbone's maps, names
and numbers of classes from the annotations. All of it is done before anything is built.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from timm.data import resolve_data_config

from ..backbones._errors import UserError

_PARTS = ("train", "val", "test")
_FOLDERS = {"mmdet": "coco", "mmseg": "ade20k"}
_LAYOUTS = {
    "mmdet": "COCO's train2017/, val2017/ and annotations/",
    "mmseg": "ADEChallengeData2016's images/ and annotations/",
}
CLASSES_FILE = "classes.txt"


def is_dense(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a detector or segmenter: its model has a backbone."""
    return isinstance(config.get("model"), Mapping) and "backbone" in config["model"]


def walk(value: Any) -> Iterator[Any]:
    """Every dictionary in a config's value, itself included, outermost first."""
    if isinstance(value, Mapping):
        yield value
        for entry in list(value.values()):
            yield from walk(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from walk(entry)


# --- another backbone ---


def use_backbone(config: Config, name: str) -> None:
    """Put another timm model in the place of the config's, with neck and heads for its maps.

    Raises:
        UserError: an unknown model, or one whose maps do not suit the config's heads; says what would.
    """
    model = config.model
    before = model.backbone
    kept = ("type", "out_indices", "frozen_stages", "norm_eval", "with_cp", "pretrained")
    options = {key: before[key] for key in kept if key in before and (key != "out_indices" or _counts_back(before))}
    model.backbone = {**options, "type": "TimmPyramid", "model_name": name}
    old = _pyramid({**before})
    new = _pyramid(model.backbone)
    if len(new.strides) != len(old.strides):
        raise UserError(
            f"{name} gives {len(new.strides)} maps (strides {_said(new.strides)}), and this config's neck and heads "
            f"take {len(old.strides)} (strides {_said(old.strides)})"
        )
    fit_channels(model, old.out_channels, new.out_channels)
    _fit_colours(model, new)
    if new.strides != old.strides:
        _fit_strides(model, name, old.strides, new.strides)


def _fit_colours(model: Any, pyramid: Any) -> None:
    """Take the mean and spread of colours that the backbone was trained with; they are of RGB, from 0 to 255."""
    data = resolve_data_config({}, model=pyramid.body)
    preprocessor = model.get("data_preprocessor") or {}
    if "mean" in preprocessor:
        preprocessor["mean"], preprocessor["std"] = ([round(255 * x, 3) for x in data[key]] for key in ("mean", "std"))


def _counts_back(backbone: Mapping[str, Any]) -> bool:
    """Whether `out_indices` are told from the end, which means the same maps in any model."""
    return all(index < 0 for index in backbone.get("out_indices") or ())


def _pyramid(backbone: Mapping[str, Any]) -> Any:
    from mmengine.registry import MODELS

    with torch.device("meta"):
        return MODELS.build({**backbone, "pretrained": False, "init_cfg": None})


def fit_channels(model: Any, old: list[int], new: list[int]) -> None:
    """Replace the channels of the backbone's maps wherever neck or heads name them."""
    neck = model.get("neck")
    first = neck[0] if isinstance(neck, list | tuple) else neck
    if first is not None:
        first["in_channels"] = new if isinstance(first["in_channels"], list | tuple) else new[-1]
        return
    auxiliary = model.get("auxiliary_head") or []
    for head in (model.get("decode_head"), *(auxiliary if isinstance(auxiliary, list | tuple) else [auxiliary])):
        if head is None or "in_channels" not in head:
            continue
        index = head.get("in_index", -1 if not isinstance(head["in_channels"], list | tuple) else None)
        if isinstance(head["in_channels"], list | tuple):
            head["in_channels"] = list(new) if index is None else [new[i] for i in index]
        else:
            head["in_channels"] = new[index]


def _fit_strides(model: Any, name: str, old: list[int], new: list[int]) -> None:
    """Grow finer levels where the backbone's maps are coarser than the heads expect."""
    neck = model.get("neck")
    finer = 0
    while new[0] > old[0] * 2**finer:
        finer += 1
    if not isinstance(neck, Mapping) or neck.get("type") not in ("FPN", "PyramidNeck") or new[0] != old[0] * 2**finer:
        raise UserError(
            f"the maps of {name} have strides {_said(new)}, and this config's heads are made for {_said(old)}: take a "
            "config with a feature pyramid (FPN), or another model"
        )
    levels = neck["num_outs"]
    model.neck = {
        "type": "PyramidNeck",
        "in_channels": neck["in_channels"],
        "out_channels": neck["out_channels"],
        "num_outs": max(levels, len(new) + finer),
        "extra_levels": finer,
    }
    if model.neck["num_outs"] != levels:
        raise UserError(
            f"the maps of {name} have strides {_said(new)}; the {levels} levels of this config's neck would not hold "
            f"them: {model.neck['num_outs']} would (model.neck.num_outs, and strides of the heads' anchors)"
        )


def _said(strides: list[int]) -> str:
    return ", ".join(map(str, strides))


# --- another data folder ---


def use_data(config: Config, folder: str) -> None:
    """Put another folder in the place of the data root, make_dataset's OUT folder included.

    Raises:
        UserError: the folder does not exist.
    """
    root = Path(folder)
    inner = _FOLDERS.get(config.get("default_scope", ""), "")
    if inner and (root / inner).is_dir():
        root = root / inner
    if not root.is_dir():
        raise UserError(f"data folder {folder} does not exist")
    old = data_root(config)
    for part in _PARTS:
        for entry in walk((config.get(f"{part}_dataloader"), config.get(f"{part}_evaluator"))):
            if "data_root" in entry:
                entry["data_root"] = str(root)
            file = entry.get("ann_file")
            if isinstance(file, str) and old and Path(file).is_relative_to(old):
                entry["ann_file"] = str(root / Path(file).relative_to(old))


def check_data(config: Mapping[str, Any], part: str) -> None:
    """Refuse to begin where the folder of a part's data is missing.

    Raises:
        UserError: names the folder, and says what lies in it.
    """
    for entry in walk(config.get(f"{part}_dataloader")):
        root = entry.get("data_root")
        if root and not Path(root).is_dir():
            layout = _LAYOUTS.get(config.get("default_scope", ""), "")
            raise UserError(
                f"data folder {root} does not exist: put {layout or 'the data'} there, or name it by --data"
            )


def data_root(config: Mapping[str, Any]) -> str | None:
    """The folder that the config's training (else validation, test) data lies in."""
    for part in _PARTS:
        for entry in walk(config.get(f"{part}_dataloader")):
            if entry.get("data_root"):
                return str(entry["data_root"])
    return None


# --- classes of one's own ---


def use_classes(config: Config) -> list[str] | None:
    """Take the classes of the annotations, where the config's are others: their names, and the sizes of all heads.

    Returns:
        The names, where they are not those of the config; None where nothing changed or nothing could be read.

    Raises:
        UserError: the annotation file is no COCO file, or `classes.txt` holds no names.
    """
    names = _names_in_data(config)
    if names is None or names == names_of_config(config):
        return None
    for entry in _data_sets(config):
        _name_classes(config, entry, names)
    set_class_count(config.model, len(names))
    return names


def set_class_count(model: Any, count: int) -> None:
    """Give every head of a config's model this number of classes."""
    for entry in walk(model):
        if "num_classes" in entry:
            entry["num_classes"] = count
        if "num_things_classes" in entry:
            entry["num_things_classes"], entry["num_stuff_classes"] = 0, count
        if entry.get("type") == "CrossEntropyLoss" and isinstance(entry.get("class_weight"), list):
            entry["class_weight"] = [1.0] * count + [entry["class_weight"][-1]]  # the last is of no class


def _name_classes(config: Mapping[str, Any], dataset: Any, names: list[str]) -> None:
    dataset["metainfo"] = {"classes": tuple(names)}
    if config.get("default_scope") != "mmseg":
        return
    dataset["metainfo"]["palette"] = colours(len(names))
    if dataset["type"] not in ("ADE20KDataset", "BaseSegDataset"):
        raise UserError(f"{CLASSES_FILE} gives names to masks laid out as ADE20K's; {dataset['type']} has its own")
    # mmseg's data sets take no names beside their own; this one has none, and the defaults are those of ADE20K
    usual = {"img_suffix": ".jpg", "seg_map_suffix": ".png", "reduce_zero_label": True}
    dataset.update({**usual, **dataset, "type": "BaseSegDataset"})


def colours(count: int) -> list[list[int]]:
    """So many colours of different hues, red, green and blue from 0 to 255."""
    steps = torch.linspace(0, 1, count + 1)[:count]
    turned = torch.stack([(steps + shift) % 1 for shift in (0.0, 1 / 3, 2 / 3)], 1)
    return (turned * 6 - 3).abs().sub(1).clamp(0, 1).mul(200).add(55).round().int().tolist()


def names_of_config(config: Mapping[str, Any]) -> list[str] | None:
    """What the training data set would call its classes."""
    for entry in _data_sets(config):
        given = (entry.get("metainfo") or {}).get("classes")
        if given is None:
            given = getattr(_dataset_class(config, entry["type"]), "METAINFO", {}).get("classes")
        return list(given) if given else None
    return None


def _data_sets(config: Mapping[str, Any]) -> Iterator[Any]:
    """The data sets themselves, inside of whatever repeats or joins them: training first."""
    for part in _PARTS:
        for entry in walk(config.get(f"{part}_dataloader")):
            if "data_root" in entry and "type" in entry:
                yield entry


def _dataset_class(config: Mapping[str, Any], kind: Any) -> Any:
    from mmengine.registry import DATASETS

    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(config.get("default_scope")) as registry:
        return registry.get(kind)


def _names_in_data(config: Mapping[str, Any]) -> list[str] | None:
    root = Path(data_root(config) or "")
    if config.get("default_scope") == "mmseg":
        file = root / CLASSES_FILE
        if not file.is_file():
            return None
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not names:
            raise UserError(f"{file} holds no names: it takes one class a line, in the order of the masks' numbers")
        return names
    found: dict[Path, list[str]] = {}
    for entry in _data_sets(config):
        file = Path(entry["data_root"]) / str(entry.get("ann_file", ""))
        if "Coco" in str(entry["type"]) and file.suffix == ".json" and file.is_file() and file not in found:
            found[file] = _coco_names(file)
    for file, names in found.items():
        first, expected = next(iter(found.items()))
        if names != expected:
            raise UserError(f"{file} lists other categories, or the same in another order, than {first}")
    return next(iter(found.values()), None)


def _coco_names(file: Path) -> list[str]:
    """The names of a COCO file's categories in its own order, by which mmdet numbers them."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = [str(entry["name"]) for entry in content["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no COCO annotation file: {type(error).__name__}: {error}") from error
    if not names:
        raise UserError(f"{file} has no categories")
    return names
