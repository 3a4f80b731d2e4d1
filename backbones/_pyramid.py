"""What every family shares: timm's whole model interface over a stack of stages.

A family builds its stages and hands them to `Pyramid`, which adds the classifier head and answers every call that timm,
and libraries that build on timm, make on a model. Maps travel between stages as (B, C, H, W) at strides 4, 8, 16, 32;
inside, a stage lays its tokens out as it likes. Parameters are named `stages.I.downsample`, `stages.I.blocks.J`,
`stages.I.norm`, `norm` (after the last stage, in families that have it) and `head.fc`: layer decay, pruning and the
check of checkpoints (`_keys.py`) go by these names.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype, trunc_normal_
from timm.models import PretrainedCfg, build_model_with_cfg, checkpoint_seq, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ._download import published_weights
from ._errors import NotAvailable, UserError
from ._features import MIN_SIZE, FeatureMaps

PyramidT = TypeVar("PyramidT", bound="Pyramid")


class Stage(nn.Module):
    """Shrink the map, run the blocks, norm what leaves: (B, C_in, H, W) -> (B, C, H', W').

    `TokenStage` is for blocks that want the channels last.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm or nn.Identity()
        self.grad_checkpointing = False

    def run_blocks(self, x: Tensor) -> Tensor:
        """Run the blocks one by one, each checkpointed where `set_grad_checkpointing` asked for it."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.run_blocks(self.downsample(x)))


class TokenStage(Stage):
    """A stage whose blocks and norm see (B, H, W, C); its downsampling and its result are (B, C, H, W).

    On a CPU, where `prepare_image` lays images out channels last, neither change of layout moves a byte.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        return self.norm(self.run_blocks(x)).permute(0, 3, 1, 2)


class Pyramid(FeatureMaps):
    """A backbone of four stages with timm's interface: image (B, in_chans, H, W) -> logits (B, num_classes).

    Args:
        stages: modules that map (B, C, H, W) to (B, C', H', W'), with `Stage`'s children.
        dims: the channels that leave each stage.
        norm: what follows the last stage before pooling, on (B, C, H, W); None in families that norm each stage.
        num_classes: 0 leaves the head without a classifier.
        global_pool: timm's pooling names; "" (with `num_classes=0`) returns the map.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        norm: nn.Module | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        _check_head(num_classes, global_pool)
        self.stages = nn.Sequential(*stages)
        self.norm = norm or nn.Identity()
        self.num_features = dims[-1]
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, device=device, dtype=dtype)
        self.head_hidden_size = self.head.num_features
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one leaf; a family extends it with its authors' rule for convolutions and tables."""
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H, W) -> logits (B, num_classes), or (B, head_hidden_size) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last map asked for, and what sits on them; returns the maps' absolute numbers."""
        take, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore()
    def get_classifier(self) -> nn.Module:
        """The linear classifier; an Identity where there is none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place, initialised as at build, on the model's device, dtype and mode.

        Args:
            num_classes: 0 for none: the model then returns pooled features (B, head_hidden_size).
            global_pool: None keeps the pooling; "" (with 0 classes) returns the map (B, num_features, H/32, W/32).

        Raises:
            UserError: classes without pooling.
        """
        _check_head(num_classes, self.head.global_pool.pool_type if global_pool is None else global_pool)
        self.num_classes = num_classes
        where = get_device_dtype(self)
        self.head.reset(
            num_classes, global_pool, in_features=self.num_features, device=where["device"], dtype=where["dtype"]
        )
        self.head_hidden_size = self.head.num_features
        self.head.apply(self._init_weights)

    @torch.jit.ignore()
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep the input of each block and run it again in the backward pass."""
        self.grad_checkpointing = enable
        for part in self.modules():
            if isinstance(part, Stage):
                part.grad_checkpointing = enable

    @torch.jit.ignore()
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for layer decay: one group a block, or one a stage with `coarse`; the head comes last.

        A downsampling goes with the block behind it, a norm with what comes before it.
        """
        stage, with_previous = r"^stages\.(\d+)", (99999,)
        fine = [
            (stage + r"\.downsample", (0,)),
            (stage + r"\.blocks\.(\d+)", None),
            (stage + r"\.norm", with_previous),
        ]
        return {
            "stem": r"^stages\.0\.downsample",
            "blocks": [*([(stage, None)] if coarse else fine), (r"^norm\.", with_previous)],
        }

    @torch.jit.ignore()
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the authors do not decay, beyond vectors and biases, which timm exempts."""
        return set()


def _check_head(num_classes: int, global_pool: str) -> None:
    if num_classes and not global_pool:
        raise UserError(f"global_pool='' leaves a map, which the classifier of num_classes={num_classes} cannot take")


def drop_path_ramp(rate: float, depths: Sequence[int], stages: int = 4) -> list[list[float]]:
    """Drop path rates by stage and block: a straight line from 0 at the first block to `rate` at the last.

    Raises:
        UserError: `depths` does not give a number of blocks for each stage, or `rate` is no share below 1.
    """
    if not isinstance(depths, Sequence) or len(depths) != stages or not all(_is_count(depth) for depth in depths):
        raise UserError(f"depths is {depths!r}; it takes {stages} numbers of blocks, 1 or more each")
    if not isinstance(rate, Real) or not 0 <= rate < 1:
        raise UserError(f"drop_path_rate is {rate!r}; it takes a number from 0 up and below 1")
    rates: Any = calculate_drop_path_rates(rate, list(depths), stagewise=True)
    return rates


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_side(name: str, value: Any) -> None:
    """Refuse an option that says the side of a window and is no number of pixels.

    Raises:
        UserError: says the option and its value.
    """
    if not _is_count(value):
        raise UserError(f"{name} is {value!r}; it takes a whole number of pixels, 1 or more")


def check_sides(name: str, values: Any, count: int) -> None:
    """`check_side` for an option that says a side for each of so many stages.

    Raises:
        UserError: says the option and its value.
    """
    if not isinstance(values, Sequence) or len(values) != count or not all(_is_count(value) for value in values):
        raise UserError(f"{name} is {values!r}; it takes {count} whole numbers of pixels, 1 or more each")


def init_conv_fan_out_(conv: nn.Conv2d) -> None:
    """Weights normal with variance 2 / fan out, where groups divide the fan (torch's own Kaiming does not), bias 0."""
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def weights_cfg(**entries: Any) -> dict[str, Any]:
    """timm's description of one set of weights: ImageNet-1K at 224 pixels, changed by `entries`."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "min_input_size": (3, MIN_SIZE, MIN_SIZE),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.downsample.conv",
        "classifier": "head.fc",
        **entries,
    }


AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0, "crop_mode": "squash"}
"""What `weights_cfg` gets for weights tuned at 384 pixels: the whole image is squeezed into the square."""


_HUB = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests")  # whose errors say that the hub gave no file


def _without_link(cfg: PretrainedCfg) -> str:
    name = ".".join(filter(None, (cfg.architecture, cfg.tag)))
    published = f"; the authors' page is {cfg.origin_url}" if cfg.origin_url else ""
    return (
        f"the pretrained_cfg of {name} has no link to weights{published}; "
        "pretrained_cfg_overlay=dict(file='FILE') takes a file you have, as it is"
    )


def build(
    cls: type[PyramidT],
    name: str,
    pretrained: bool,
    checkpoint_filter_fn: Callable[[Mapping[str, Any], PyramidT], dict[str, Tensor]],
    **kwargs: Any,
) -> PyramidT:
    """Build a registered model through timm, so that tags, weights, overlays and `features_only` do what timm says.

    `features_only` models get no classifier at all, and their maps come from `forward_intermediates`. Weights in a file
    or behind a direct link are read by `published_weights`.

    Raises:
        NotAvailable: the published weights cannot be had.
        UserError: they are damaged, or do not fit.
    """
    if kwargs.get("features_only"):
        kwargs.setdefault("num_classes", 0)
    overlay = kwargs.pop("pretrained_cfg_overlay", None)
    cfg = resolve_pretrained_cfg(name, kwargs.pop("pretrained_cfg", None), overlay)
    weights = published_weights(cfg, kwargs.get("cache_dir")) if pretrained else None
    if pretrained and weights is None and not (cfg.state_dict or cfg.hf_hub_id or cfg.source == "local-dir"):
        raise UserError(_without_link(cfg))
    convert = checkpoint_filter_fn
    if weights is not None:  # timm copies what its cfg holds, so the cfg gets a token and the filter the file
        cfg = replace(cfg, state_dict={"fetched": True})

        def convert(_: Mapping[str, Any], built: PyramidT) -> dict[str, Tensor]:
            return checkpoint_filter_fn(weights, built)

    try:
        model = build_model_with_cfg(
            cls,
            name,
            pretrained,
            pretrained_cfg=cfg,
            pretrained_filter_fn=convert,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter", "flatten_sequential": True},
            **kwargs,
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _HUB:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise NotAvailable(
            f"the published weights of {name} cannot be had from {cfg.hf_hub_id} on the Hugging Face hub: {reason}"
        ) from error
    if weights is not None:
        described: Any = model.pretrained_cfg
        described["state_dict"] = None
    return model
