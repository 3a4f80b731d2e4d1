"""What becomes of a labelled image, wherever it is read: its transform, its place in a batch, its stand-ins."""

from typing import Any

import timm
from PIL import Image
from timm.data import auto_augment, create_transform, resolve_data_config

from ..backbones._errors import UserError

NO_TARGET = -1  # the target of an image that could not be read; metrics leave it out
NEIGHBOURS = 100  # that are tried in the place of an unreadable image


def blank_image() -> Image.Image:
    """What an evaluation sees in the place of an unreadable image."""
    return Image.new("RGB", (32, 32))


def data_error(name: str, root: str, error: Exception) -> UserError:
    """One sentence for what timm raises when it opens a data set."""
    if isinstance(error, ImportError) or "Please install" in str(error):
        return UserError(f'data set {name!r} needs a package ({error}): pip install "vertebra[data]"')
    return UserError(f"data set {name or root} cannot be read: {error}")


def build_transform(model_name: str | None, changes: dict[str, Any], training: bool) -> Any:
    """timm's transform of a PIL image to a uint8 array (3, H, W)."""
    arguments = transform_arguments(model_name, changes)
    return _posterizing_to_black(create_transform(**arguments, is_training=training, use_prefetcher=True))


def transform_arguments(model_name: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of timm's `create_transform`: what the model's pretrained cfg says, then `changes`."""
    cfg = timm.get_pretrained_cfg(model_name) if model_name else None
    return {**(resolve_data_config(pretrained_cfg=cfg.to_dict()) if cfg else {}), **changes}


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return auto_augment.posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)


def _posterizing_to_black(transform: Any) -> Any:
    """Let posterizing to 0 bits give black, as it did before Pillow 13 refused it; timm's RandAugment asks for it."""
    for part in transform.transforms:
        for policy in (getattr(part, "ops", ()), *getattr(part, "policy", ())):
            for operation in policy:
                if operation.aug_fn is auto_augment.posterize:
                    operation.aug_fn = _posterize
    return transform


def epoch_batches(size: int, batch: int, world: int, group: int = 1, limit: int | None = None) -> int:
    """Batches of a training epoch on each rank: whole optimizer steps, what is left over stays out.

    Raises:
        UserError: there are fewer images than one optimizer step takes.
    """
    batches = size // (batch * world * group) * group
    if batches == 0:
        raise UserError(
            f"{size} training images are fewer than one step takes ({batch} a batch x {world} processes x "
            f"{group} accumulated): lower train_dataloader.batch_size"
        )
    return min(batches, max(limit // group, 1) * group) if limit else batches
