"""The smaller values of the recipes of ImageNet: mixing, erasing, AdamW's own, heads, memory, precision, pixels.

DETAILS is written from section (f) of each family's specification. What that section does not give is named by
`Details.silent`; there a recipe takes what timm or torch takes, or what is said beside the value.
"""

import inspect
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import vertebra.engine  # noqa: F401  registers what the configs name
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup, create_transform
from vertebra.engine.config import config_names, find_config, read_config
from vertebra.engine.samples import transform_arguments

Channels = tuple[float, ...]
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Details:
    """What a recipe says beside its rates and lengths."""

    switch: float | None = 0.5  # how often cutmix takes the place of mixup; None where images are not mixed
    erasing: str | None = "pixel"  # what an erased part is filled with; None where nothing is erased
    jitter: float = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    head_scale: float = 1.0  # of the classifier's first weights
    checkpointing: bool = False
    amp: str | None = None  # of the head's command
    mean: Channels = IMAGENET_DEFAULT_MEAN
    std: Channels = IMAGENET_DEFAULT_STD
    silent: tuple[str, ...] = ()  # fields that section (f) does not give


ADAMW = ("betas", "eps")
DETAILS = {
    "biformer": Details(amp="fp16", silent=("switch", "erasing", *ADAMW)),  # "AMP autocast", whose type is fp16
    "cswin": Details(amp="fp16", silent=ADAMW),
    "davit": Details(amp="fp16", silent=("betas",)),
    "l2vit": Details(silent=("switch", "betas")),
    "litv2": Details(silent=("amp",)),
    "maxvit": Details(mean=HALF, std=HALF, silent=("switch", "erasing", "jitter", *ADAMW, "amp")),  # timm's own
    "shvit": Details(silent=("amp",)),
    "transnext": Details(amp="fp16"),
    "van": Details(silent=(*ADAMW, "amp")),
}
# the authors erase nothing and mix by mixup alone, which leaves nothing to switch
MAXVIT_TF = replace(DETAILS["maxvit"], erasing=None, amp="bf16", silent=("switch", "jitter", *ADAMW))


def expected(name: str) -> Details:
    """The row of a recipe: its family's, but for a few models."""
    family, variant = name.split("/")[1:]
    row = MAXVIT_TF if "_tf_" in variant else DETAILS[family]
    if re.fullmatch(r"maxvit_\w+_tf_224_fused", variant):  # "legacy": those on ImageNet-1K alone
        return replace(row, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    if family == "van" and variant.endswith("_ft"):
        return replace(row, head_scale=0.001, switch=None)
    if variant.startswith("cswin_large"):  # given for fine-tuning at 224; at 384 and on ImageNet-22K taken from there
        return replace(row, checkpointing=True)
    if re.match("davit_(huge|giant)", variant):  # ours, for memory: nothing is published of their training
        return replace(row, checkpointing=True)
    return row


NAMES = [name for name in config_names() if name.count("/") == 2 and name.startswith("imagenet/")]

read = cache(read_config)


def of_adamw(name: str) -> Any:
    return inspect.signature(torch.optim.AdamW).parameters[name].default


def precision_of(name: str) -> str | None:
    text = find_config(name).read_text(encoding="utf-8").replace(" \\\n#    ", "")
    command = next(line for line in text.splitlines() if "tools/train.py" in line)
    found = re.search(r" --amp (\w+)", command)
    return found[1] if found else None


def details_of(name: str) -> Details:
    config = read(name)
    model, optimizer = config.model, config.optim_wrapper.optimizer
    transform = config.train_dataloader.dataset.transform
    pixels = transform_arguments(model.model_name, transform)
    assert optimizer.keys() == {"type", "lr", "weight_decay"}, "what else AdamW takes is torch's default"
    return Details(
        switch=model.mixup.switch_prob if model.mixup else None,
        erasing=model.erasing.mode if model.erasing else None,
        jitter=transform.color_jitter,
        betas=of_adamw("betas"),
        eps=of_adamw("eps"),
        head_scale=model.get("head_init_scale", 1.0),
        checkpointing=model.get("grad_checkpointing", False),
        amp=precision_of(name),
        mean=pixels["mean"],
        std=pixels["std"],
    )


@pytest.mark.parametrize("family", DETAILS)
def test_the_smaller_values_are_what_the_specification_says(family: str) -> None:
    names = [name for name in NAMES if name.split("/")[1] == family]
    assert names
    for name in names:
        assert asdict(details_of(name)) == asdict(replace(expected(name), silent=())), name


@pytest.mark.parametrize("family", DETAILS)
def test_no_data_set_has_pixels_of_its_own(family: str) -> None:
    """The model's buffers hold mean and std of its timm cfg, which a loader's could only contradict."""
    for name in [name for name in NAMES if name.split("/")[1] == family]:
        for part in ("train", "val", "test"):
            changes = read(name)[f"{part}_dataloader"].dataset.get("transform", {})
            assert not changes.keys() & {"mean", "std"}, name


def test_what_a_specification_leaves_out_is_the_default_of_timm_or_torch() -> None:
    usual = {
        "switch": inspect.signature(Mixup).parameters["switch_prob"].default,
        "jitter": inspect.signature(create_transform).parameters["color_jitter"].default,
        "erasing": "pixel",  # the default of timm's training script, which is no part of the package
        "betas": of_adamw("betas"),
        "eps": of_adamw("eps"),
        "amp": None,  # ours: float32 where nothing is said
    }
    for name in NAMES:
        row = expected(name)
        wrong = {key for key in row.silent if getattr(row, key) not in (usual[key], None)}
        assert not wrong, name
    assert {key for name in NAMES for key in expected(name).silent} == usual.keys()
