"""Names that a user typed: are they known, and which did they mean?"""

from collections.abc import Sequence
from difflib import get_close_matches

import timm

from ._errors import UserError


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """' Did you mean a, b?' for the nearest names, or an empty string."""
    near = get_close_matches(word, known, n=3, cutoff=0.6)
    return f" Did you mean {', '.join(near)}?" if near else ""


def check_model_name(name: str) -> str:
    """The name, with or without a tag, if timm knows it; UserError with near matches otherwise."""
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise UserError(f"there is no model {name!r} in timm or vertebra.{did_you_mean(name.split('.')[0], known)}")
    return name
