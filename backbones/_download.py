"""Published weights behind a direct link: fetched once, checked, read without running anything in them.

timm's own way keeps whatever arrived: a download that broke off stays in the cache, and every later attempt fails on
it with PyTorch's error. Here a file that is not what it should be is removed, and one sentence says what was wrong.
"""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
import yaml
from timm.models import PretrainedCfg

from ._checkpoint import read_checkpoint
from ._errors import DamagedFile, NotAvailable, UserError

_CARDS = Path(__file__).parents[1] / "model_cards" / "cards.yml"
_HASH_IN_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.")  # digits alone are a date


def published_weights(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> dict[str, Any] | None:
    """The content of a cfg's `file`, or of what its `url` names; None where timm loads from the hub or a folder.

    Args:
        cfg: of the weights wanted, overlays included.
        cache_dir: where files are kept; None takes PyTorch's hub folder, as timm does.

    Raises:
        NotAvailable: the file cannot be had.
        UserError: the file is truncated, is no checkpoint, or has another hash than it should. A file that is damaged
            is removed from the cache.
    """
    url: Any = cfg.url  # timm allows pairs too, for other loaders
    if cfg.source == "local-dir":
        return None
    if cfg.file and not cfg.state_dict:
        return read_checkpoint(cfg.file)
    if not url or cfg.state_dict or cfg.hf_hub_id:
        return None
    folder = Path(cache_dir or Path(torch.hub.get_dir()) / "checkpoints").expanduser()
    path = folder / Path(unquote(urlparse(url).path)).name
    if not path.exists():
        _fetch(url, path, cfg.architecture)
    _check_hash(path, cfg)
    try:
        return read_checkpoint(path)
    except DamagedFile as error:
        path.unlink()
        raise UserError(f"the download of {cfg.url} is broken and was removed, try again: {error}") from error


def _fetch(url: str, path: Path, name: str | None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", None) or error
        raise NotAvailable(f"the published weights of {name} cannot be had: {url}: {reason}") from error


def _check_hash(path: Path, cfg: PretrainedCfg) -> None:
    """Refuse, and remove, a file whose SHA-256 is not the one in its name or in cards.yml; most have none."""
    in_name = _HASH_IN_NAME.search(path.name)
    expected = in_name[1] if in_name else _sha256_of_card(cfg.url)
    if not expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        path.unlink()
        raise UserError(
            f"the download of {cfg.url} was removed: its SHA-256 begins with {found[: len(expected)]}, "
            f"but {expected} is expected"
        )


def _sha256_of_card(url: str | None) -> str:
    """What cards.yml has as `sha256` of the weights with this link; "" where it has none."""
    if not _CARDS.exists():
        return ""
    cards = yaml.safe_load(_CARDS.read_text(encoding="utf-8"))
    models = (model for card in cards.values() for model in (card.get("models") or {}).values())
    return next((model["sha256"] for model in models if model and model.get("url") == url and "sha256" in model), "")
