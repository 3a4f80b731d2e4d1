"""Any timm model as a classifier that mmengine's Runner trains and evaluates."""

import math
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from timm.data import Mixup, resolve_data_config
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from ..backbones._checkpoint import create, load_weights, read_checkpoint
from ..backbones._errors import UserError
from .data import NO_TARGET

DIVERGED = (
    "the loss is {loss}: training has diverged; lower the learning rate (optim_wrapper.optimizer.lr), or take "
    "--amp bf16 for fp16; checkpoints saved before stay as they are"
)


@MODELS.register_module()
class TimmPreprocessor(BaseDataPreprocessor):
    """uint8 images to normalised ones on the device; in training, random erasing and mixup/cutmix of the batch.

    Args:
        mean, std: per channel, of images scaled to 0-1.
        mixup, erasing: arguments of `timm.data.Mixup` and `timm.data.random_erasing.RandomErasing`, None for none.
        num_classes: for mixed targets.
        channels_last: memory format of the images.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        num_classes: int,
        mixup: dict[str, Any] | None = None,
        erasing: dict[str, Any] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(non_blocking=True)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)
        self.mixup = Mixup(**mixup, label_smoothing=0.0, num_classes=num_classes) if mixup else None
        self.erasing = dict(erasing) if erasing else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, data: dict[str, Tensor], training: bool = False) -> dict[str, Tensor]:
        """`inputs` (B, 3, H, W) uint8 and `targets` (B,) to float inputs and targets, (B, classes) where mixed."""
        data = self.cast_data({"inputs": data["inputs"], "targets": data["targets"]})
        inputs, targets = (data["inputs"].float() - self.mean) / self.std, data["targets"]
        if training and self.erasing:
            inputs = RandomErasing(**{"mode": "pixel", **self.erasing}, device=inputs.device)(inputs)
        if training and self.mixup:
            if len(inputs) % 2:
                raise UserError(f"mixup pairs the images of a batch: batch_size {len(inputs)} is odd, take an even one")
            inputs, targets = self.mixup(inputs, targets)
        return {"inputs": inputs.contiguous(memory_format=self.memory_format), "targets": targets}


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """`timm.create_model(model_name, **options)` with a cross-entropy loss.

    The model stands under `backbone`, head included, so a saved file's keys are `backbone.` + timm's keys.

    Args:
        model_name: any timm name, ours or not.
        num_classes: None takes the model's own.
        pretrained: load the weights of the model's tag.
        weights: a checkpoint file to start from (fine-tuning); a head of another size starts anew.
        label_smoothing: of the loss, also on mixed targets.
        mixup, erasing: see `TimmPreprocessor`.
        channels_last: memory format of weights and images; convolutions are often faster in it.
        compiled: run the model through torch.compile.
        options: further arguments of `timm.create_model` (drop_path_rate, drop_rate, in_chans ...).
    """

    def __init__(
        self,
        model_name: str,
        num_classes: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        label_smoothing: float = 0.0,
        mixup: dict[str, Any] | None = None,
        erasing: dict[str, Any] | None = None,
        channels_last: bool = False,
        compiled: bool = False,
        **options: Any,
    ) -> None:
        backbone = create(model_name, pretrained, num_classes=num_classes, **options)
        if weights:
            fresh = load_weights(backbone, read_checkpoint(weights), weights)
            if fresh:
                MMLogger.get_current_instance().warning(f"{weights}: {', '.join(fresh)} start anew")
        data = resolve_data_config({}, model=backbone)
        super().__init__(
            TimmPreprocessor(data["mean"], data["std"], backbone.num_classes, mixup, erasing, channels_last)
        )
        self.backbone = backbone
        if channels_last:
            backbone.to(memory_format=torch.channels_last)
        if compiled:
            backbone.compile()
        self.model_name, self.options, self.label_smoothing = model_name, options, label_smoothing

    def init_weights(self) -> None:
        """Nothing to do: timm initialises when it builds, and mmengine's default would overwrite loaded weights."""

    def describe(self) -> dict[str, Any]:
        """What rebuilds this model from a checkpoint alone."""
        data = resolve_data_config({}, model=self.backbone)
        return {
            "model_name": self.model_name,
            "num_classes": self.backbone.num_classes,
            "options": dict(self.options),
            "mean": tuple(data["mean"]),
            "std": tuple(data["std"]),
        }

    def forward(self, inputs: Tensor, targets: Tensor | None = None, mode: str = "tensor") -> Any:
        """`tensor`: logits (B, classes); `loss`: a dict of losses; `predict`: one dict with logits and targets."""
        logits = self.backbone(inputs)
        if mode == "loss":
            assert targets is not None
            return {"loss": F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)}
        if mode == "predict":
            return [{"logits": logits.float(), "targets": targets}]
        return logits

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """mmengine's sum of losses; a loss that is no number ends the run before it can spoil the weights."""
        loss, log = super().parse_losses(losses)
        if not math.isfinite(loss.item()):
            raise UserError(DIVERGED.format(loss=loss.item()))
        return loss, log


def has_target(targets: Tensor) -> Tensor:
    """Which samples of a batch could be read: (B,) bool."""
    return targets != NO_TARGET
