"""Detectors and segmenters of mmdet and mmseg: what they are built of, and checkpoints of any layout for them.

A whole file of the authors loads as it is: the backbone's keys go through its family's filter (`TimmPyramid`), neck and
heads keep the names they had in mmdet 2 and mmseg 0, but for the transformers' (`_RENAMED`). Those are not verified on
a file of theirs: mmdet 3 has no converter for them, and TransNeXt's DINO and Mask2Former appear to be of mmdet 3.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..backbones._checkpoint import find_weights, some
from ..backbones._errors import UserError
from .pyramid import TimmPyramid
from .pyramid_weights import translate

_COUNTER = "num_batches_tracked"  # which old files lack
_RENAMED = (  # of mmdet 2 -> of mmdet 3, one after the other
    (r"^bbox_head\.transformer\.(encoder|decoder)\.", r"\1."),
    (r"^bbox_head\.transformer\.level_embeds$", "level_embed"),
    (r"^bbox_head\.transformer\.enc_output\.", "memory_trans_fc."),
    (r"^bbox_head\.transformer\.enc_output_norm\.", "memory_trans_norm."),
    (r"^bbox_head\.transformer\.(pos_trans|reference_points)\.", r"\1_fc."),
    (r"^bbox_head\.transformer\.pos_trans_norm\.", "pos_trans_norm."),
    (r"^bbox_head\.query_embedding\.", "query_embedding."),
    # attentions were numbered in the order they run: Mask2Former's layers look at the image first
    (r"(\btransformer_decoder\.layers\.\d+\.)attentions\.0\.", r"\1cross_attn."),
    (r"(\btransformer_decoder\.layers\.\d+\.)attentions\.1\.", r"\1self_attn."),
    (r"(\b(?:encoder|decoder)\.layers\.\d+\.)attentions\.0\.", r"\1self_attn."),
    (r"(\bdecoder\.layers\.\d+\.)attentions\.1\.", r"\1cross_attn."),
    (r"(\.layers\.\d+\.)ffns\.0\.", r"\1ffn."),
)
_BACKBONE = "backbone."


def is_dense(model: nn.Module) -> bool:
    """Whether a model is a detector or segmenter, and no classifier of ours."""
    return not hasattr(model, "describe")


def describe_dense(model: nn.Module, labels: list[str]) -> dict[str, Any]:
    """What a checkpoint says of a detector or segmenter: its kind, its backbone, and the names of its classes."""
    backbone = getattr(model, "backbone", None)
    return {
        "model_name": getattr(backbone, "model_name", type(backbone).__name__),
        "kind": type(model).__name__,
        "num_classes": len(labels),
        "labels": labels,
    }


def load_dense(model: nn.Module, checkpoint: Mapping[str, Any], source: str, training: bool) -> list[str]:
    """Load weights of ours, or of the authors, into a detector or segmenter.

    Args:
        model: the detector, whose `backbone` is a `TimmPyramid` or any other.
        checkpoint: as `read_checkpoint` returns it.
        source: the file's name, for messages.
        training: whether heads may start anew, where the file has others or none.

    Returns:
        Sentences to tell: what starts anew, and what of the file is not used.

    Raises:
        UserError: nothing of the file fits; or, not in training, part of the model is not in it.
    """
    own = model.state_dict()
    given = find_weights(checkpoint)
    weights = {key if key in own or key.startswith(_BACKBONE) else rename(key): v for key, v in given.items()}
    weights, left = _with_our_backbone(weights, model, source)
    reshaped = [key for key, value in weights.items() if key in own and own[key].shape != value.shape]
    fits = {key: value for key, value in weights.items() if key not in reshaped}
    missing = [key for key in own if key not in fits and not key.endswith(_COUNTER)]
    if len(missing) >= sum(not key.endswith(_COUNTER) for key in own):
        raise UserError(f"checkpoint {source} has nothing of a {type(model).__name__}; it has {some(list(weights))}")
    if missing and not training:
        first = next((key for key in missing if key in reshaped), missing[0])
        shapes = [tuple(where[first].shape) for where in (weights, own) if first in where]
        what = f"{first} is {shapes[0]} there and {shapes[1]} here" if first in reshaped else f"it lacks {first}"
        rest = f", and {len(missing) - 1} more do not fit or are missing" if len(missing) > 1 else ""
        raise UserError(f"checkpoint {source} does not fit this {type(model).__name__}: {what}{rest}")
    _, unused = model.load_state_dict(fits, strict=False)
    unused = [*left, *unused]
    sentences = []
    if missing:
        sentences.append(f"{source}: {some(parts(missing))} start anew ({len(missing)} of {len(own)} tensors)")
    if unused:
        sentences.append(f"{source}: {some(unused)} in it {'are' if len(unused) > 1 else 'is'} not used")
    return sentences


def _with_our_backbone(
    weights: dict[str, Tensor], model: nn.Module, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's weights under our keys where they have others, and the keys of those that it has no use for."""
    backbone = getattr(model, "backbone", None)
    given = {key: value for key, value in weights.items() if key.startswith(_BACKBONE)}
    if not isinstance(backbone, TimmPyramid) or not given or given.keys() & model.state_dict().keys():
        return weights, []
    translated, left = translate(given, backbone, source)
    heads = {key: value for key, value in weights.items() if key not in given}
    return heads | {_BACKBONE + key: value for key, value in translated.items()}, left


def rename(key: str) -> str:
    """A key of neck or heads under the name that it has today."""
    for old, new in _RENAMED:
        key = re.sub(old, new, key)
    return key


def parts(keys: list[str]) -> list[str]:
    """The modules that parameters belong to, each once."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in keys))
