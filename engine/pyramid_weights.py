"""Weights of any layout for a `TimmPyramid`: read, renamed to its keys, and checked against it.

Three layouts occur: the wrapper's own (`body.`, `norms.`), timm's keys as classifiers have them, and the authors',
which the model's family renames. Each may stand under `backbone.`, beside the neck and the heads of a detector.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from ..backbones._checkpoint import _rename, find_weights, load_weights, read_checkpoint, some
from ..backbones._download import published_weights
from ..backbones._errors import UserError
from ..backbones._keys import convert_keys

if TYPE_CHECKING:
    from .pyramid import TimmPyramid

COUNTER = ".num_batches_tracked"

# the authors' output norms by family: the keys, and the number that the first map has in them
_OUTPUT_NORMS = {
    "biformer": (r"extra_norms\.(\d)\.", 0),
    "cswin": (r"norm(\d)\.", 1),
    "davit_fused": (r"norm(\d)\.", 0),
    "l2vit": (r"norm(\d)\.", 0),
    "litv2": (r"norm(\d)\.", 0),
}


def weights_source(pretrained: bool | str | Path, init_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where weights come from: `checkpoint` and `prefix`, {} for nowhere; `checkpoint` None is the published weights.

    Raises:
        UserError: both arguments name weights, or `init_cfg` is no `dict(type="Pretrained", checkpoint=FILE)`.
    """
    if init_cfg and pretrained:
        raise UserError(f"pretrained={pretrained!r} and init_cfg both name weights for the backbone; keep one of them")
    if not init_cfg:
        return {"checkpoint": None if pretrained is True else pretrained, "prefix": ""} if pretrained else {}
    if not isinstance(init_cfg, Mapping) or init_cfg.get("type") != "Pretrained" or not init_cfg.get("checkpoint"):
        raise UserError(f"init_cfg is {init_cfg!r}; a TimmPyramid takes dict(type='Pretrained', checkpoint=FILE)")
    return {"checkpoint": init_cfg["checkpoint"], "prefix": init_cfg.get("prefix") or ""}


def read_weights(file: str | Path, prefix: str, name: str) -> dict[str, Tensor]:
    """The weights in a file, or in the one that a link names, without `prefix`; keys outside it are left out.

    Raises:
        UserError: the file cannot be had or read, or has no such keys.
    """
    if str(file).startswith(("http://", "https://")):
        given = find_weights(published_weights(PretrainedCfg(url=str(file), architecture=name)) or {})
    else:
        given = find_weights(read_checkpoint(file))
    if not prefix:
        return given
    start = prefix.removesuffix(".") + "."
    chosen = {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}
    if not chosen:
        raise UserError(f"checkpoint {file} has no keys that begin with {start!r}; it has {some(list(given))}")
    return chosen


def translate(given: Mapping[str, Tensor], pyramid: "TimmPyramid", source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of any layout under the wrapper's keys, and the keys of those that it has no use for.

    Args:
        given: of the model alone, or of a whole detector, whose keys of the model begin with `backbone.`.
        pyramid: whom they are for; it is not changed.
        source: the file's name, for messages.

    Raises:
        UserError: a tensor of the model is missing, or has another shape; names the first keys at fault.
    """
    outer = "backbone." if any(key.startswith("backbone.") for key in given) else ""
    inner = {key.removeprefix(outer): value for key, value in given.items() if key.startswith(outer)}
    own = pyramid.state_dict()
    ours = inner.keys() & own.keys()
    at = "body." if ours else ""
    trunk = {key.removeprefix(at): value for key, value in inner.items() if key.startswith(at)}
    try:
        taken, used, family = _trunk(trunk, pyramid, source)
    except UserError as error:
        if source in str(error):
            raise
        raise UserError(f"checkpoint {source}: {error}") from error
    norms = {key: key for key in ours if key.startswith("norms.")} if ours else _output_norms(inner, family, own)
    reshaped = [key for mine, key in norms.items() if inner[key].shape != own[mine].shape]
    if reshaped:
        raise UserError(f"checkpoint {source} does not fit {pyramid.model_name}: {some(reshaped)} have another shape")
    translated = {f"body.{key}": value for key, value in taken.items()}
    translated |= {mine: inner[key] for mine, key in norms.items()}
    places = {outer + at + key for key in used} | {outer + key for key in norms.values()}
    return translated, [key for key in given if key not in places and not key.endswith(COUNTER)]


def _trunk(given: Mapping[str, Tensor], pyramid: "TimmPyramid", source: str) -> tuple[dict[str, Tensor], set[str], str]:
    """Weights under timm's or the authors' keys: what the model takes, the keys that it took, and its family."""
    kept = pyramid.body.state_dict()
    parts = {key.partition(".")[0] for key in kept}
    whole = all(key in given and given[key].shape == kept[key].shape for key in kept if not key.endswith(COUNTER))
    if whole and all(key in kept for key in given if key.partition(".")[0] in parts):
        taken = {key: given[key] for key in kept if key in given}
        return taken, set(taken), _family(pyramid.body)
    with torch.random.fork_rng(devices=[]), _quiet_filter():
        full = pyramid.build_body()  # filters want the model before it lost what no map needs
        renamed = _rename(full, dict(given), source)
        spare = {key: value.clone() for key, value in full.state_dict().items() if key not in kept}
        load_weights(full, {**renamed, **spare}, source)  # whatever the file has of parts that are not kept
    loaded = full.state_dict()
    places = {renamed[key].data_ptr() for key in kept if key in renamed}
    used = {key for key, value in given.items() if value.data_ptr() in places}
    return {key: loaded[key] for key in kept}, used, _family(full)


def _output_norms(given: Mapping[str, Tensor], family: str, own: Mapping[str, Tensor]) -> dict[str, str]:
    """The wrapper's keys of its output norms, and the authors' keys where `given` has them."""
    pattern, first = _OUTPUT_NORMS.get(family, ("$", 0))
    found = {key: re.match(pattern, key) for key in given}
    named = {f"norms.{int(at[1]) - first}.{key[at.end() :]}": key for key, at in found.items() if at}
    return {mine: key for mine, key in named.items() if mine in own}


def _family(model: nn.Module) -> str:
    return type(model).__module__.rpartition(".")[2]


@contextmanager
def _quiet_filter() -> Iterator[None]:
    """The filters warn that a detector's file leaves classifier and final norm fresh: the wrapper has neither."""
    logger = logging.getLogger(convert_keys.__module__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
