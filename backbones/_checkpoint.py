"""Reading checkpoint files safely, and finding the weights inside them.

Every path of vertebra that takes a file of weights comes through `read_checkpoint`: safetensors, or `torch.load` with
`weights_only=True` and an allow-list for the inert things that mmengine stores beside the weights (numpy arrays and
scalars, its HistoryBuffer). There is no fall-back to full unpickling: a file that needs one is refused, and the error
names `convert_checkpoint`, which reads such files without running anything in them.
"""

import json
import pickle
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import timm
import torch
from safetensors import safe_open
from timm.models import clean_state_dict
from torch import nn

from ._errors import DamagedFile, NotAvailable, UserError

# timm's order, so that the same file gives the same weights whoever reads it; mmengine's files come first, below
_NESTED_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model")
_STATISTICS = ("min", "max", "current", "mean")


class _History:
    """Stands in for mmengine's HistoryBuffer where mmengine is not imported: holds the arrays and does nothing."""


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for `getattr`, which mmengine's files call to name HistoryBuffer's own four statistics."""
    if getattr(owner, "__name__", "") not in ("HistoryBuffer", "_History") or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"the file asks for the attribute {name!r} of {owner!r}")
    return getattr(owner, name, None)


def _allowed() -> list[Any]:
    """The classes and functions, beyond tensors and containers, that a checkpoint may name."""
    history = sys.modules.get("mmengine.logging.history_buffer")
    reconstruct, scalar = np._core.multiarray._reconstruct, np._core.multiarray.scalar
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name.endswith("DType")]
    return [
        (history.HistoryBuffer if history else _History, "mmengine.logging.history_buffer.HistoryBuffer"),
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),  # numpy 1 and 2
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        (_history_method, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        meta = {key: _json_or_text(value) for key, value in (file.metadata() or {}).items()}
        return {"state_dict": {key: file.get_tensor(key) for key in file.keys()}, "meta": meta}  # noqa: SIM118


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def check_file(path: str | Path) -> Path:
    """The path of a file that holds something; UserError if it is missing, no file, or empty."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"checkpoint {path} "
            + ("does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}")
        ) from None
    if not path.is_file():
        raise UserError(f"checkpoint {path} is no file")
    if size == 0:
        raise DamagedFile(f"checkpoint {path} is empty (0 bytes): the copy or download that made it did not finish")
    return path


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU without running anything in it.

    Returns:
        The file's dictionary as stored. A safetensors file comes as `{"state_dict": ..., "meta": ...}`.

    Raises:
        UserError: the file is missing, empty, truncated, no checkpoint, or holds objects that are not allowed.
    """
    path = check_file(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and archive kinds; what matters raises as well
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None
    except PermissionError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # damaged bytes lead PyTorch's unpickler into errors of every kind
        reason = in_words(str(error), "its bytes make no sense")
        if "TorchScript" in reason:
            raise UserError(f"checkpoint {path} is a TorchScript program, not a file of weights") from None
        raise DamagedFile(no_checkpoint(path, reason)) from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}; a dictionary of weights is what can be loaded"
        )
    return checkpoint


def check_archive(path: str | Path) -> None:
    """Compare every byte of a file that `torch.save` wrote with the sums in it, which `torch.load` leaves unread.

    Raises:
        UserError: bytes were changed after it was written.
    """
    path = check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, zlib.error):  # another format, or no end: reading it says what it is
        return
    if damaged:
        raise DamagedFile(f"checkpoint {path} is damaged: the bytes of {damaged} are not those that were written")


def no_checkpoint(path: Path, reason: str) -> str:
    """The sentence for a file that cannot be read as weights."""
    said = f"checkpoint {path} is truncated or no checkpoint file ({reason})"
    return f"{said}; what torch.save or safetensors wrote is accepted"


def in_words(said: str, otherwise: str) -> str:
    """The first line of an error, if it has words: some say a number alone."""
    first = shorten(said.strip().partition("\n")[0], 160, placeholder=" ...")
    return first if " " in first else otherwise


def _refusal(path: Path, error: pickle.UnpicklingError) -> UserError:
    try:
        with torch.serialization.safe_globals(_allowed()):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # not the zip format, or damaged: the error names what it met first
        names = []
    core = re.search(r"\n\n\s*(.*)\n\nCheck the documentation", str(error))  # between PyTorch's advice
    said = in_words(core[1] if core else str(error), "its bytes make no sense")
    names = names or re.findall(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
    with path.open("rb") as file:
        pickled = file.read(4).startswith((b"PK\x03\x04", b"\x80"))
    if not pickled:
        return DamagedFile(no_checkpoint(path, said))
    shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    return UserError(
        f"checkpoint {path} is refused: "
        + (f"unpickling it would call {shown}" if names else f"it holds more than plain weights ({said})")
        + "; if you trust its source, `vertebra convert_checkpoint NAME FILE OUT.safetensors` takes the weights out "
        "without running anything"
    )


def described(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of this project's trainers says of its run: model, classes, options; {} for any other file."""
    meta = checkpoint.get("meta")
    known = meta.get("vertebra") if isinstance(meta, Mapping) else None
    return dict(known) if isinstance(known, Mapping) else {}


def weights_place(checkpoint: Mapping[str, Any], raw: bool = False) -> str:
    """The key under which `find_weights` finds the weights of a checkpoint, "" where they are not nested."""
    order = _NESTED_UNDER
    if raw:
        order = ("ema_state_dict", "state_dict", "model") if "message_hub" in checkpoint else ("state_dict", "model")
    return next((key for key in order if isinstance(checkpoint.get(key), Mapping)), "")


def find_weights(checkpoint: Mapping[str, Any], raw: bool = False) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint: un-nested, without `module.` prefixes, the EMA copy where there is one.

    Args:
        checkpoint: flat, or nested under `model`, `state_dict`, `model_ema` or `state_dict_ema`. mmengine's files keep
            the evaluated weights (EMA, if it was on) under `state_dict` and the other copy under `ema_state_dict`.
        raw: take the plain weights although the file holds an EMA copy.

    Raises:
        UserError: there is no tensor where weights should be.
    """
    place = weights_place(checkpoint, raw)
    nested = checkpoint[place] if place else checkpoint
    weights = {key: value for key, value in nested.items() if isinstance(value, torch.Tensor) and isinstance(key, str)}
    if not weights:
        keys = ", ".join(map(str, list(checkpoint)[:8]))
        raise UserError(f"the checkpoint holds no weights; {f'its keys are {keys}' if keys else 'it is empty'}")
    return clean_state_dict(weights)


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], source: str, raw: bool = False) -> list[str]:
    """Load a checkpoint of any layout that the model's family knows into a built timm model.

    Args:
        model: as `timm.create_model` returns it.
        checkpoint: as `read_checkpoint` returns it; keys may carry the prefix `backbone.` of this project's trainers.
        source: the file's name, for messages.
        raw: see `find_weights`.

    Returns:
        The keys of the classifier that the file lacks or has in another size, and, where it is a trunk alone, those of
        the norm before it; they stay as initialised.

    Raises:
        UserError: the trunk's keys or shapes do not fit.
    """
    weights = find_weights(checkpoint, raw)
    weights = {
        key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")
    } or weights
    weights = _rename(model, weights, source)
    own = model.state_dict()
    fits = {key: value for key, value in weights.items() if key not in own or value.shape == own[key].shape}
    missing, unknown = model.load_state_dict(fits, strict=False)
    # a family's filter fills what the file lacks with the model's own tensors
    fresh = {*missing, *(key for key in fits if key in own and fits[key].data_ptr() == own[key].data_ptr() != 0)}
    heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if not any(key.startswith(heads) for key in own.keys() - fresh):
        heads = (*heads, "norm.")  # a detector's file: it has norms of its own in that place
    trunk = sorted(key for key in fresh if not key.startswith(heads) and not key.endswith("num_batches_tracked"))
    unknown = [key for key in unknown if not key.startswith(heads)]
    reshaped = [f"{key} as {tuple(weights[key].shape)}" for key in trunk if key in weights and key not in fits]
    lacking = [key for key in trunk if key not in weights or key in fits]
    said = [f"it lacks {some(lacking)}"] * bool(lacking)
    said += [f"it has {some(reshaped)}, another shape"] * bool(reshaped)
    said += [f"it has {some(unknown)}, which the model has not"] * bool(unknown)
    if said:
        raise UserError(f"checkpoint {source} does not fit {architecture(model)}: {'; '.join(said)}")
    return sorted(key for key in fresh if key.startswith(heads))


def _rename(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The weights under the model's own keys, by its family's filter; timm's filters stumble over files of others."""
    family_filter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if family_filter is None:
        return weights
    try:
        return family_filter(weights, model)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoint {source} does not fit {architecture(model)}: it has {some(list(weights))}"
        ) from error


def architecture(model: nn.Module) -> str:
    """The name that a model was built by, else its class's."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)


def some(keys: Sequence[str]) -> str:
    """The first of many keys, and how many more there are."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """`timm.create_model`, with one sentence where published weights cannot be had.

    Raises:
        NotAvailable: no network, or no weights.
        UserError: a file that is not what it should be.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except UserError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotAvailable(f"the published weights of {name} cannot be had: {reason}") from error
