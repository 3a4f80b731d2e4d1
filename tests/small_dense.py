"""Detectors and segmenters as the configs describe them, cut down to one block a stage and narrow heads.

The leaf of a family is taken where there is one, else the open head with the family's smallest backbone; a backbone of
three stages gets the neck that grows finer maps, a plain ViT the neck that makes a pyramid of its one map.
"""

import copy
from typing import Any

import timm
import torch
import vertebra.engine  # noqa: F401  stands in for mmcv's operators, before mmdet asks for them
from mmdet.testing import demo_mm_inputs
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from vertebra.engine import dense_config
from vertebra.engine.config import config_names, read_config

DETECTORS = ("retinanet", "mask-rcnn", "cascade-mask-rcnn", "atss", "gfl", "dino-4scale", "dino-5scale")
SEGMENTERS = ("semantic-fpn", "upernet", "mask2former")
HEADS = DETECTORS + SEGMENTERS
THINGS, STUFF = 80, 150  # classes of COCO and ADE20K
SMALLEST = {
    "van": "van_b0",
    "biformer": "biformer_tiny",
    "transnext": "transnext_micro",
    "litv2": "litv2_small",
    "cswin": "cswin_tiny",
    "l2vit": "l2vit_tiny",
    "davit": "davit_tiny_fused",
    "maxvit": "maxvit_pico_rw_256_fused",
    "shvit": "shvit_s1_fused",
}
_FROM_STRIDE_8 = ("retinanet", "atss", "gfl", "dino-4scale")  # others begin at stride 4
_SIZES = ("b0", "micro", "tiny", "b1", "small", "b2")


def leaf(head: str, family: str) -> str | None:
    """The config of this head with the smallest backbone of a family; None where there is none."""
    found = [name for name in config_names() if f"/{family}/{head}_" in name]
    rank = {name: next((i for i, size in enumerate(_SIZES) if f"_{size}_" in name), len(_SIZES)) for name in found}
    return min(found, key=lambda name: rank[name], default=None)


def open_head(head: str) -> str:
    """The config of this head that takes any backbone."""
    return next(name for name in config_names() if name.count("/") == 1 and f"/{head}_" in name)


def small_config(head: str, backbone: str, depths: tuple[int, ...] | None = None) -> Config:
    """A config for small images on a CPU.

    Args:
        head: one of `HEADS`.
        backbone: a family of ours, whose leaf is taken, or any name of timm for the open head.
        depths: blocks a stage; None takes one of each where the model has that option.
    """
    found = leaf(head, backbone) if backbone in SMALLEST else None
    config = copy.deepcopy(read_config(found or open_head(head)))
    if found is None:
        _put_backbone(config, head, SMALLEST.get(backbone, backbone))
    described = config.model.backbone
    described.pretrained = False
    if depths or _takes_depths(described.model_name):
        described.depths = depths or (1,) * len(timm.create_model(described.model_name, device="meta").stages)
    if "bias_size" in described:
        described.bias_size = 64
    _narrow(config.model)
    return config


def put_model(config: Config, name: str) -> None:
    """Put another model of the same family, whole, into a family's config, whose options stay."""
    model = config.model
    model.backbone.model_name = name
    model.backbone.pop("depths", None)
    with torch.device("meta"):
        channels = registry.MODELS.build(copy.deepcopy(model.backbone)).out_channels
    if "neck" in model:
        model.neck.in_channels = channels
        return
    model.decode_head.in_channels = channels
    if "auxiliary_head" in model:
        model.auxiliary_head.in_channels = channels[model.auxiliary_head.in_index]


def _takes_depths(name: str) -> bool:
    try:
        timm.create_model(name, device="meta", depths=(1,) * len(timm.create_model(name, device="meta").stages))
    except (AttributeError, TypeError):
        return False
    return True


def _put_backbone(config: Config, head: str, name: str) -> None:
    """`--backbone`, and what a user would write for a model whose maps are too few for it."""
    with torch.device("meta"):
        strides = timm.create_model(name, features_only=True).feature_info.reduction()
    if [stride for stride in strides if stride >= 4] == [4, 8, 16, 32]:
        dense_config.use_backbone(config, name)
        return
    model = config.model
    one = len(set(strides)) == 1
    model.backbone = dict(type="TimmPyramid", model_name=name, out_indices=(-1,) if one else None)
    with torch.device("meta"):
        channels = registry.MODELS.build(copy.deepcopy(model.backbone)).out_channels
    width = 256
    model.neck = dict(in_channels=channels, out_channels=width, num_outs=4 if head == "dino-4scale" else 5)
    if one:
        model.neck.update(type="SimplePyramid", start_level=1 if head in _FROM_STRIDE_8 else 0)
    else:
        model.neck.update(type="PyramidNeck", extra_levels=1 if head in _FROM_STRIDE_8 else 2)
    if head in SEGMENTERS:
        model.decode_head.in_channels = [width] * 4
        if "auxiliary_head" in model:
            model.auxiliary_head.in_channels = width


def _narrow(model: Any) -> None:
    """Few queries, layers, points and hidden channels: nothing that a promise about steps rests on."""
    for entry in dense_config.walk(model):
        for key, most in {
            "num_queries": 30,
            "num_layers": 2,
            "num_points": entry.get("num_points", 0) if "embed_dims" in entry else 128,
            "fc_out_channels": 64,
            "feedforward_channels": 64,
            "num_dn_queries": 10,
            "stacked_convs": 1,
            "score_thr": 0.0,
            "nms_pre": 200,
            "num": 16,  # boxes an image that the heads learn from
            "max_per_img": 20,
        }.items():
            if isinstance(entry.get(key), int | float):
                entry[key] = min(entry[key], most)
    if model.type == "EncoderDecoder":
        model.data_preprocessor.size = (64, 64)


def build(config: Config) -> nn.Module:
    """The model of a config, its weights initialised as a runner initialises them."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = registry.MODELS.build(copy.deepcopy(config.model))
        model.init_weights()
    return model


def images(head: str) -> dict[str, Any]:
    """A batch as a data loader hands it on: two images with boxes and masks, or with a class for each pixel."""
    if head in DETECTORS:
        sizes = [(3, 96, 128), (3, 100, 80)]
        return demo_mm_inputs(2, sizes, num_items=[3, 1], num_classes=THINGS, with_mask="mask" in head)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randint(0, 256, (3, 64, 64), generator=draw, dtype=torch.uint8) for _ in range(2)]
    samples = []
    for _ in inputs:
        classes = torch.randint(0, STUFF, (1, 64, 64), generator=draw)
        classes[:, :8] = 255  # unlabelled
        meta = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64))
        samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=classes)))
    return dict(inputs=inputs, data_samples=samples)
