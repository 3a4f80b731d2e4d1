"""Any timm model as a classifier that mmengine's Runner trains and evaluates."""

import math
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import MMLogger
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from timm.data import Mixup, resolve_data_config
from timm.data.random_erasing import RandomErasing
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones._checkpoint import create, load_weights, read_checkpoint
from ..backbones._errors import UserError
from ..backbones._names import check_model_name
from .data import NO_TARGET

DIVERGED = (
    "{what}: training has diverged; lower the learning rate (optim_wrapper.optimizer.lr), or take "
    "--amp bf16 for fp16; checkpoints saved before stay as they are, and --resume --nan-guard names the module that "
    "begins it"
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
        weights: what to start from (fine-tuning): a checkpoint file, or the name of published weights such as
            `van_b4.in22k`, which timm fetches. A head of another size starts anew, and that is said.
        head_init_scale: what the head's weights are multiplied by where it starts anew.
        label_smoothing: of the loss, also on mixed targets.
        mixup, erasing: see `TimmPreprocessor`.
        channels_last: memory format of weights and images; convolutions are often faster in it.
        compiled: run the model through torch.compile.
        norm_eval: BatchNorm layers keep to their running statistics in training; their scales and shifts still learn.
        grad_checkpointing: compute each block again in the backward pass, for less memory.
        sync_bn: statistics of BatchNorm over all processes, where several run on GPUs.
        options: further arguments of `timm.create_model` (drop_path_rate, drop_rate, in_chans ...).

    Raises:
        UserError: weights that cannot be had or do not fit, or an option that model or machine cannot follow.
    """

    def __init__(
        self,
        model_name: str,
        num_classes: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        head_init_scale: float = 1.0,
        label_smoothing: float = 0.0,
        mixup: dict[str, Any] | None = None,
        erasing: dict[str, Any] | None = None,
        channels_last: bool = False,
        compiled: bool = False,
        norm_eval: bool = False,
        grad_checkpointing: bool = False,
        sync_bn: bool = False,
        **options: Any,
    ) -> None:
        backbone = create(model_name, pretrained, num_classes=num_classes, **options)
        if weights:
            _start_from(backbone, weights, head_init_scale)
        if grad_checkpointing:
            _checkpoint_gradients(backbone, model_name)
        if sync_bn:
            backbone = _synchronised(backbone)
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
        self.compiled, self.norm_eval = compiled, norm_eval

    def train(self, mode: bool = True) -> "TimmClassifier":
        """Training or evaluation; BatchNorm stays in evaluation where `norm_eval` says so."""
        super().train(mode)
        if mode and self.norm_eval:
            for part in self.backbone.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

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
        """mmengine's sum of losses, logged as the mean over all processes.

        A loss that is no number ends the run before it can spoil the weights, in all processes at once.
        """
        loss, log = super().parse_losses(losses)
        mean = loss.detach().clone()
        all_reduce(mean, op="mean")
        if not math.isfinite(mean.item()):
            raise UserError(DIVERGED.format(what=f"the loss is {mean.item()}"))
        return loss, {**log, "loss": mean}


def _start_from(backbone: nn.Module, weights: str, head_init_scale: float) -> None:
    if Path(weights).exists() or not _is_published(weights):
        checkpoint = read_checkpoint(weights)
    else:
        try:
            checkpoint = {"state_dict": create(weights, pretrained=True).state_dict()}
        except UserError as error:
            reason = str(error).partition("; pretrained_cfg_overlay")[0].rstrip(".")  # timm's way, which is not ours
            raise UserError(
                f"model.weights is {weights!r}, which cannot be had ({reason}); a file that holds them is taken as "
                "model.weights=FILE"
            ) from error
    fresh = load_weights(backbone, checkpoint, weights)
    if not fresh:
        return
    MMLogger.get_current_instance().warning(f"{weights}: {', '.join(fresh)} start anew")
    if head_init_scale != 1:
        with torch.no_grad():
            for name in fresh:
                backbone.state_dict()[name].mul_(head_init_scale)


def _is_published(weights: str) -> bool:
    """Whether a word that is no file's is the name of a model with published weights.

    Raises:
        UserError: it looks like one, and timm does not know it.
    """
    name, _, tag = weights.partition(".")
    if "/" in weights or Path(weights).suffix in (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors"):
        return False
    check_model_name(name)
    tags = timm.list_models(f"{name}.*", include_tags=True)
    if tag and weights not in tags:
        raise UserError(f"model.weights is {weights!r}; published weights of {name} are {', '.join(tags) or 'none'}")
    return True


def _checkpoint_gradients(backbone: Any, name: str) -> None:
    try:
        backbone.set_grad_checkpointing()
    except (AttributeError, AssertionError, TypeError):
        raise UserError(f"model.grad_checkpointing is set, and {name} has no gradient checkpointing") from None


def _synchronised(backbone: nn.Module) -> nn.Module:
    if get_world_size() == 1:
        return backbone
    if get_device() == "cpu":
        raise UserError("model.sync_bn is for GPUs, and this runs on cpu: leave it out")
    return convert_sync_batchnorm(backbone)


def has_target(targets: Tensor) -> Tensor:
    """Which samples of a batch could be read: (B,) bool."""
    return targets != NO_TARGET
