"""Whether neck and heads of a detector or segmenter fit the maps of its backbone: told before anything is built."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS

from ..backbones._errors import UserError
from .dense_backbone import colours_of


def check_fit(model: Mapping[str, Any]) -> None:
    """Compare channels and numbers of maps along the way from a `TimmPyramid` to the heads; others are not known.

    Raises:
        UserError: names the entry, what it has and what it should be.
    """
    backbone = model["backbone"]
    if backbone.get("type") != "TimmPyramid":
        return
    with torch.device("meta"):
        pyramid = MODELS.build({**backbone, "pretrained": False, "init_cfg": None})
    levels: list[int] = pyramid.out_channels
    source = f"the maps of {backbone['model_name']} have {', '.join(map(str, levels))} channels"
    for path, neck in _several("model.neck", model.get("neck")):
        downwards = neck.get("type") == "YOLOV3Neck"  # it counts from the coarsest map
        _compare(f"{path}.in_channels", neck.get("in_channels"), levels[::-1] if downwards else levels, source)
        width, count = neck.get("out_channels"), _levels_of(neck, len(levels), "decode_head" in model)
        if not isinstance(width, int) or not isinstance(count, int):
            return  # a neck of another kind: what it gives is not known
        levels, source = [width] * count, f"the neck gives {count} maps of {width} channels"
    if "decode_head" in model:
        for key in ("decode_head", "auxiliary_head"):
            for path, head in _several(f"model.{key}", model.get(key)):
                _check_segment_head(path, head, levels, source)
    elif model.get("neck") is not None:
        _check_box_heads(model, levels, source)


def other_colours(model: Mapping[str, Any]) -> list[str]:
    """Sentences on colours that are not normalised as the published weights were trained; nothing else would show it.

    Empty where the model does not start from published weights of a `TimmPyramid`.
    """
    backbone, preprocessor = model["backbone"], model.get("data_preprocessor") or {}
    if backbone.get("type") != "TimmPyramid" or backbone.get("pretrained") is not True:
        return []
    sentences = []
    for key, wanted in colours_of(backbone["model_name"]).items():
        given = preprocessor.get(key)
        if given is not None and any(abs(x - y) > 1 for x, y in zip(given, wanted, strict=False)):
            trained = f"the weights of {backbone['model_name']} were trained with {wanted}"
            sentences.append(f"model.data_preprocessor.{key} is {list(given)}; {trained}")
    return sentences


def _levels_of(neck: Mapping[str, Any], maps: int, segments: bool) -> Any:
    """How many levels a neck makes of `maps` maps: its `num_outs`, else what its class takes for that.

    None where it cannot be known: mmseg's MultiLevelNeck makes them as its `scales` say.
    """
    if "num_outs" in neck:
        return neck["num_outs"]
    kind = neck.get("type")
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry("mmseg" if segments else "mmdet") as registry:
            kind = registry.get(kind)
    known = inspect.signature(kind).parameters.get("num_outs") if kind is not None else None
    if known is None or known.default is known.empty:
        return None
    return maps if known.default is None else known.default  # mmdet's ChannelMapper


def _compare(path: str, given: Any, levels: Sequence[int], source: str) -> None:
    """One `in_channels`: a list for all maps, or a number for the last."""
    if given is None:
        return
    expected = list(levels) if isinstance(given, list | tuple) else levels[-1]
    if (list(given) if isinstance(given, list | tuple) else given) != expected:
        raise UserError(f"{path} is {_plain(given)}, but {source}: it should be {expected}")


def _check_segment_head(path: str, head: Mapping[str, Any], levels: Sequence[int], source: str) -> None:
    given, index = head.get("in_channels"), head.get("in_index")
    if given is None:
        return
    several = isinstance(given, list | tuple)
    if index is None:
        index = list(range(len(levels))) if several else -1
    places = list(index) if isinstance(index, list | tuple) else [index]
    beyond = [place for place in places if not -len(levels) <= place < len(levels)]
    if beyond:
        raise UserError(f"{path}.in_index is {_plain(index)}, but {source}: the last is number {len(levels) - 1}")
    expected = [levels[place] for place in places]
    if (list(given) if several else [given]) != expected:
        should = expected if several else expected[0]
        at = f" at in_index {_plain(head['in_index'])}" if "in_index" in head else ""
        raise UserError(f"{path}.in_channels is {_plain(given)}, but {source}{at}: it should be {should}")


def _check_box_heads(model: Mapping[str, Any], levels: Sequence[int], source: str) -> None:
    """Detectors: every head behind a neck works on levels of one width; anchors are of as many levels."""
    roi = model.get("roi_head") or {}
    dense = [(key, model.get(f"{key}")) for key in ("rpn_head", "bbox_head", "mask_head")]
    for path, head in ((f"model.{key}", head) for key, head in dense if isinstance(head, Mapping)):
        if isinstance(head.get("in_channels"), int):
            _compare(f"{path}.in_channels", head["in_channels"], levels, source)
        strides = (head.get("anchor_generator") or {}).get("strides")
        if strides is not None and len(strides) != len(levels):
            raise UserError(
                f"{path}.anchor_generator.strides is {_plain(strides)}, but {source}: it takes {len(levels)} strides, "
                "or model.neck.num_outs another number"
            )
    for part in ("bbox", "mask"):
        for path, reader in _several(f"model.roi_head.{part}_roi_extractor", roi.get(f"{part}_roi_extractor")):
            _compare(f"{path}.out_channels", reader.get("out_channels"), levels, source)
            strides = reader.get("featmap_strides") or ()
            if len(strides) > len(levels):
                raise UserError(f"{path}.featmap_strides is {_plain(strides)}, but {source}")
            for place, head in _several(f"model.roi_head.{part}_head", roi.get(f"{part}_head")):
                _compare(f"{place}.in_channels", head.get("in_channels"), levels, source)


def _several(path: str, entry: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """An entry of a config that is one dictionary, a list of them, or nothing; each with its path."""
    if isinstance(entry, Mapping):
        yield path, entry
    elif isinstance(entry, list | tuple):
        for number, part in enumerate(entry):
            yield f"{path}.{number}", part


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
