"""Configs of detectors and segmenters: another backbone, another data folder, classes of one's own.

What a config leaves open follows from what it is given: the channels of neck and heads from the backbone's maps, names
and numbers of classes from the annotations. All of it is done before anything is built.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio import list_from_file

from ..backbones._checkpoint import some
from ..backbones._errors import UserError
from .coco_file import read_coco
from .dense_backbone import use_backbone as use_backbone

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
    # a config of one's own may have named another folder for some parts
    former = dict.fromkeys(entry["data_root"] for entry in _data_sets(config) if entry["data_root"])
    for part in _PARTS:
        for entry in walk((config.get(f"{part}_dataloader"), config.get(f"{part}_evaluator"))):
            file = entry.get("ann_file")
            if "data_root" in entry:
                entry["data_root"] = str(root)
                if file and not Path(file).is_absolute():
                    continue  # it is counted from the root
            around = [old for old in former if isinstance(file, str) and Path(file).is_relative_to(old)]
            if around:
                old = max(around, key=lambda folder: len(Path(folder).parts))
                entry["ann_file"] = str(root / Path(file).relative_to(old))


def check_data(config: Mapping[str, Any], part: str) -> None:
    """Refuse to begin where the data of a part, and what training evaluates on, are missing.

    Raises:
        UserError: names the folder or file, and says what lies in it; or the file that is evaluated with is another
            than the one that is read.
    """
    parts = ("train", "val") if part == "train" else (part,)
    for name in parts:
        _check_evaluated_file(config, name)
    for entry in walk([config.get(f"{name}_dataloader") for name in parts]):
        root = entry.get("data_root")
        if not root or entry.get("backend_args"):
            continue
        layout = _LAYOUTS.get(config.get("default_scope", ""), "") or "the data"
        if not Path(root).is_dir():
            raise UserError(f"data folder {root} does not exist: put {layout} there, or name it by --data")
        places = [entry.get("ann_file"), *(entry.get("data_prefix") or {}).values()]
        for place in (Path(root) / str(place) for place in places if place):
            if "://" not in str(place) and not place.exists():
                raise UserError(f"{place} does not exist: the data folder is to hold {layout} (--data names another)")


def _check_evaluated_file(config: Mapping[str, Any], part: str) -> None:
    """COCO's evaluation reads the annotations once more, from a place of its own: it has to know the images."""
    read = [entry for entry in _data_sets(config, (part,)) if _is(entry, "CocoDataset") and entry.get("ann_file")]
    for entry in walk(config.get(f"{part}_evaluator")):
        file = entry.get("ann_file")
        if len(read) != 1 or not file or not _is(entry, "CocoMetric"):
            continue
        expected = Path(read[0]["data_root"] or "") / read[0]["ann_file"]
        if "://" in f"{file} {expected}" or Path(file).resolve() == expected.resolve():
            continue
        if not _images(expected) <= _images(Path(file)):
            raise UserError(
                f"{part}_evaluator.ann_file is {file}, and does not list all images that {part}_dataloader reads from "
                f"{expected}: scores need the same ones"
            )


def _images(file: Path) -> set[tuple[Any, str]]:
    return {(image["id"], image["file_name"]) for image in read_coco(file)["images"]}


def _is(entry: Mapping[str, Any], kind: str) -> bool:
    """Whether a part of a config is of this class, given by name or itself."""
    given = entry.get("type")
    return (given if isinstance(given, str) else getattr(given, "__name__", "")).rpartition(".")[2] == kind


def data_root(config: Mapping[str, Any]) -> str | None:
    """The folder that the config's training (else validation, test) data lies in."""
    for part in _PARTS:
        for entry in walk(config.get(f"{part}_dataloader")):
            if entry.get("data_root"):
                return str(entry["data_root"])
    return None


# --- classes of one's own ---


def use_classes(config: Config, parts: Sequence[str] = _PARTS) -> list[str] | None:
    """Take the classes of the annotations, where the config's are others: their names, and the sizes of all heads.

    A config that itself names some of the file's classes keeps to them: mmdet leaves the others out, and numbers those
    that stay in the order of the file, whatever that of the config.

    Args:
        config: of a detector or segmenter; changed in place.
        parts: "train", "val", "test": whose annotation files are read.

    Returns:
        The names, where they are not those of the config; None where nothing changed or nothing could be read.

    Raises:
        UserError: the annotation file is no COCO file, or `classes.txt` holds no names.
    """
    names, present = _names_in_data(config, parts), names_of_config(config)
    if names is None:
        return None
    if present and set(present) <= set(names) and _names_itself(config):
        names = present if config.get("default_scope") == "mmseg" else [name for name in names if name in present]
        if names == present and all(_class_count(head) == len(names) for head in _counting(config.model)):
            return None
    elif names == present:
        return None
    for entry in _data_sets(config):
        _name_classes(config, entry, names)
    set_class_count(config.model, len(names))
    return names


def check_classes(config: Mapping[str, Any], trained: Sequence[str] | None, source: str) -> None:
    """Refuse to evaluate with other classes than a checkpoint was trained with, or another order; numbers match them.

    Raises:
        UserError: names the classes of both where their number differs, else the first one that does.
    """
    names = names_of_config(config)
    if not trained or not names or list(trained) == names:
        return
    if len(trained) != len(names):
        raise UserError(
            f"{source} was trained with {len(trained)} classes ({some(list(trained))}), and the data has {len(names)} "
            f"({some(names)}); data of the same classes is accepted"
        )
    i = next(i for i, (ours, theirs) in enumerate(zip(names, trained, strict=True)) if ours != theirs)
    raise UserError(
        f"{source} was trained with other classes, or in another order: its number {i} is {trained[i]!r}, and the "
        f"data's {names[i]!r}; annotations with the same categories in the same order are accepted"
    )


def set_class_count(model: Any, count: int) -> None:
    """Give every head of a config's model this number of classes; heads that count something else keep theirs.

    Weights of classes in losses become 1 each, and what "no class" weighs stays.

    Raises:
        UserError: the model tells things from stuff, which a list of names does not.
    """
    heads = list(_counting(model))
    weighing = {id(entry): (entry, _class_count(head)) for head in heads for entry in walk(head)}
    for head in heads:
        before = _class_count(head)
        if "num_classes" in head:
            head["num_classes"] = count
            if head.get("out_channels") in (1, before) and (head["out_channels"], count) != (1, 2):
                head.pop("out_channels")  # of mmseg's heads, which follow num_classes without it
        elif head["num_things_classes"] and head.get("num_stuff_classes"):
            if before != count:
                raise UserError(f"{head.get('type')} tells things from stuff: its numbers of classes are the config's")
        else:
            kind = "num_things_classes" if head["num_things_classes"] else "num_stuff_classes"
            head[kind] = count
    for entry, before in weighing.values():
        weights = entry.get("class_weight")
        if isinstance(weights, list | tuple) and len(weights) in (before, before + 1):
            entry["class_weight"] = [1.0] * count + list(weights[before:])


def _counting(part: Any) -> Iterator[Any]:
    """The heads that count the data's classes, not "object or not", stuff beside the things, or edges."""
    if isinstance(part, Mapping):
        if ("num_classes" in part or "num_things_classes" in part) and "boundary_threshold" not in part:
            yield part
        for key, value in part.items():
            if key not in ("rpn_head", "semantic_head"):
                yield from _counting(value)
    elif isinstance(part, list | tuple):
        for entry in part:
            yield from _counting(entry)


def _class_count(head: Mapping[str, Any]) -> int:
    if "num_classes" in head:
        return head["num_classes"]
    return head["num_things_classes"] + head.get("num_stuff_classes", 0)


def _name_classes(config: Mapping[str, Any], dataset: Any, names: list[str]) -> None:
    described = dict(dataset.get("metainfo") or {})
    before, palette = described.get("classes") or (), described.get("palette")
    described["classes"] = tuple(names)
    if palette and set(before) == set(names) and len(before) == len(palette):
        colour = dict(zip(before, palette, strict=True))
        described["palette"] = [colour[name] for name in names]
    elif palette and len(palette) != len(names):
        del described["palette"]
    dataset["metainfo"] = described
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
    names = _described_by_config(config, "classes")
    return list(names) if names else None


def palette_of_config(config: Mapping[str, Any], count: int) -> list[tuple[int, int, int]]:
    """The colours that the data set gives its classes; others, of different hues, where it has not `count` of them."""
    given = _described_by_config(config, "palette") or ()
    return [(red, green, blue) for red, green, blue in (given if len(given) == count else colours(max(count, 1)))]


def _described_by_config(config: Mapping[str, Any], what: str) -> Any:
    """An entry of the first data set's description: the config's own, else what its class says."""
    for entry in _data_sets(config):
        given = (entry.get("metainfo") or {}).get(what)
        if given is None:
            given = getattr(_dataset_class(config, entry["type"]), "METAINFO", {}).get(what)
        return list_from_file(given) if isinstance(given, str) and Path(given).is_file() else given
    return None


def _names_itself(config: Mapping[str, Any]) -> bool:
    """Whether the config names classes, and does not leave that to the class of its data set."""
    return any((entry.get("metainfo") or {}).get("classes") for entry in _data_sets(config))


def _data_sets(config: Mapping[str, Any], parts: Sequence[str] = _PARTS) -> Iterator[Any]:
    """The data sets themselves, inside of whatever repeats or joins them: training first."""
    for part in parts:
        for entry in walk(config.get(f"{part}_dataloader")):
            if "data_root" in entry and "type" in entry:
                yield entry


def _dataset_class(config: Mapping[str, Any], kind: Any) -> Any:
    from mmengine.registry import DATASETS

    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(config.get("default_scope")) as registry:
        return registry.get(kind)


def _names_in_data(config: Mapping[str, Any], parts: Sequence[str]) -> list[str] | None:
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
    for entry in _data_sets(config, parts):
        file = Path(entry["data_root"]) / str(entry.get("ann_file", ""))
        if "CocoDataset" in str(entry["type"]) and file.suffix == ".json" and file.is_file() and file not in found:
            found[file] = _coco_names(file)
    for file, names in found.items():
        first, expected = next(iter(found.items()))
        if names != expected:
            raise UserError(f"{file} lists other categories, or the same in another order, than {first}")
    return next(iter(found.values()), None)


def _coco_names(file: Path) -> list[str]:
    """The names of a COCO file's categories in its own order, by which mmdet numbers them."""
    return [str(entry["name"]) for entry in read_coco(file)["categories"]]
