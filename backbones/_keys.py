"""The strict way from any file of an architecture to the state dict of a model, for every family's filter.

timm stops being strict as soon as features are asked for or the number of classes differs, so the check is here: every
key of the trunk must be in the file, in its shape, and no other.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ._checkpoint import architecture, find_weights, some
from ._errors import UserError

_COUNTER = ".num_batches_tracked"
_logger = logging.getLogger(__name__)


def convert_keys(
    checkpoint: Mapping[str, Any], model: nn.Module, rename: Callable[[str], str | None]
) -> dict[str, Tensor]:
    """Turn any layout of a checkpoint into the state dict of `model`, or say why it cannot be that.

    What a detector's file lacks, classifier and final norm, is filled in from `model` and logged.
    `model.pretrained_cfg["num_classes"]` is set to the file's own count, so that timm keeps the classifier exactly
    where the counts agree.

    Args:
        checkpoint: flat or nested as `find_weights` takes it. Where keys start with `backbone.`, only those count: the
            others are a detector's neck and heads.
        model: as built, before any adaptation; its `pretrained_cfg` names the first convolution and the classifier.
        rename: an authors' key -> ours; a key that is ours -> itself; a key to leave out (output norms) -> None. What
            the authors call `head.weight` and `head.bias` it gets by the name of the model's classifier.

    Raises:
        UserError: keys are missing, unknown or of another shape; names the first of each.
    """
    weights = find_weights(checkpoint)
    inner = {key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")}
    given: dict[str, Tensor] = {}
    old_names: dict[str, str] = {}
    classifier = _part(model, "classifier", "head.fc")
    for key, value in (inner or weights).items():
        new = rename(re.sub(r"^head\.(?=weight$|bias$)", classifier, key))
        if new is not None:
            given[new], old_names[new] = value, key
    own = model.state_dict()
    _check_trunk(model, given, own, old_names)
    _settle_classifier(model, given)
    return own | {key: given[key] for key in own.keys() & given.keys()}


def replace_parts(key: str, parts: Mapping[str, str]) -> str:
    """A key with every part that `parts` names replaced, one after the other."""
    for theirs, ours in parts.items():
        key = key.replace(theirs, ours)
    return key


_NUMBERED = {"patch_embed": "downsample", "block": "blocks", "norm": "norm"}


def rename_numbered(key: str, parts: Mapping[str, str]) -> str:
    """`block1.0.attn.q.bias` -> `stages.0.blocks.0.attn.q.bias`, as codes that descend from PVT number their stages.

    Args:
        key: of the authors; a key of ours stays as it is.
        parts: what else to replace in a key of the authors.
    """
    found = re.match(r"(patch_embed|block|norm)(\d)\.", key)
    if found is None:
        return key
    key = f"stages.{int(found[2]) - 1}.{_NUMBERED[found[1]]}.{key[found.end() :]}"
    return replace_parts(key, parts)


def _part(model: nn.Module, part: str, default: str) -> str:
    """The prefix, with its dot, of the first convolution's or the classifier's keys."""
    return ((getattr(model, "pretrained_cfg", None) or {}).get(part) or default) + "."


def _is_final(key: str) -> bool:
    """Whether a key lies behind the trunk's last block: the final norm, and what stands between it and the classes."""
    return key.startswith(("head.", "norm."))


def _check_trunk(
    model: nn.Module, given: Mapping[str, Tensor], own: Mapping[str, Tensor], old_names: Mapping[str, str]
) -> None:
    """Refuse a file whose trunk is not the model's; the classifier may differ, and the image's number of channels."""
    classifier = _part(model, "classifier", "head.fc")
    first_conv = _part(model, "first_conv", next(iter(own)).rpartition(".")[0]) + "weight"
    whole = any(key.startswith(classifier) for key in given)
    missing = [
        key
        for key in own
        if key not in given
        and not key.endswith(_COUNTER)
        and not (key.startswith(classifier) or (_is_final(key) and not whole))
    ]
    unknown = [old_names[key] for key in given if key not in own and not key.startswith("head.")]
    reshaped = []
    for key in own:
        if key in given and not key.startswith(classifier):
            theirs, ours = list(given[key].shape), list(own[key].shape)
            if key == first_conv:
                theirs[1:2] = ours[1:2]  # timm adapts the channels of the image later
            if theirs != ours:
                reshaped.append(f"{key} {tuple(theirs)} for {tuple(ours)}")
    faults = {"missing": missing, "unknown": unknown, "wrongly shaped": reshaped}
    said = ", ".join(
        f"{len(keys)} {what} key{'s' * (len(keys) > 1)} ({some(keys)})" for what, keys in faults.items() if keys
    )
    if said:
        raise UserError(f"the checkpoint does not fit {architecture(model)}: {said}")


def _settle_classifier(model: nn.Module, given: dict[str, Tensor]) -> None:
    """Take a classifier of the wrong size out of `given`, tell timm the file's classes, log what stays fresh."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    classifier, num_classes = _part(model, "classifier", "head.fc"), int(getattr(model, "num_classes", 0))
    weight = given.get(classifier + "weight")
    if weight is None:
        final = any(_is_final(key) and not key.startswith(classifier) for key in model.state_dict().keys() - given)
        parts = ["head"] * (num_classes > 0) + ["final norm"] * final
        if parts:
            _logger.warning(
                "%s: the checkpoint is a trunk alone; %s as initialised", architecture(model), " and ".join(parts)
            )
        return
    expected, found = cfg.get("num_classes", num_classes), len(weight)
    if cfg:
        cfg["num_classes"] = found
    if found != num_classes:
        for key in [key for key in given if key.startswith(classifier)]:
            del given[key]
        if num_classes:
            level = logging.INFO if found == expected else logging.WARNING
            said = "%s: the checkpoint's head has %d classes, the model's %d; the head stays as initialised"
            _logger.log(level, said, architecture(model), found, num_classes)
