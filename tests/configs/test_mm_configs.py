"""The configs of detectors and segmenters: one for each row that the authors published, true to its backbone."""

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch

pytest.importorskip("mmengine")
import vertebra.engine  # noqa: F401  registers the backbone wrapper, and stands in for mmcv's operators
from mmengine import registry
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DefaultScope
from torch import nn
from vertebra.engine.config import config_names, find_config, read_config

PUBLISHED = {
    "van": [
        *[f"coco/retinanet_van_b{i}_fpn_1x" for i in range(4)],
        *[f"coco/mask-rcnn_van_b{i}_fpn_1x" for i in range(4)],
        *[f"coco/{head}_van_b2_fpn_3x" for head in ("mask-rcnn", "cascade-mask-rcnn", "atss", "gfl")],
        *[f"ade20k/semantic-fpn_van_b{i}_40k" for i in range(4)],
        *[f"ade20k/upernet_van_b{i}_160k" for i in range(5)],
        *[f"ade20k/upernet_van_b{i}_22k_160k" for i in (4, 5, 6)],
    ],
    "biformer": [
        f"{row.format(size)}"
        for size in ("small", "base")
        for row in (
            "coco/mask-rcnn_biformer_{}_fpn_1x",
            "coco/retinanet_biformer_{}_fpn_1x",
            "ade20k/semantic-fpn_biformer_{}_80k",
            "ade20k/upernet_biformer_{}_160k",
        )
    ],
    "transnext": [
        "coco/dino-4scale_transnext_tiny_mapper_12e",
        *[
            row.format(size)
            for size in ("tiny", "small", "base")
            for row in (
                "coco/mask-rcnn_transnext_{}_fpn_1x",
                "coco/dino-5scale_transnext_{}_mapper_12e",
                "ade20k/upernet_transnext_{}_160k",
                "ade20k/mask2former_transnext_{}_160k",
            )
        ],
    ],
    "litv2": [
        row.format(size)
        for size in ("small", "medium", "base")
        for row in (
            "coco/retinanet_litv2_{}_fpn_1x",
            "coco/retinanet_litv2_{}_ws4_fpn_1x",
            "coco/mask-rcnn_litv2_{}_fpn_1x",
            "coco/mask-rcnn_litv2_{}_ws4_fpn_1x",
            "ade20k/semantic-fpn_litv2_{}_80k",
        )
    ],
    "cswin": [
        "ade20k/upernet_cswin_base_22k_640_160k",
        "ade20k/upernet_cswin_large_22k_640_160k",
        *[
            row.format(size)
            for size in ("tiny", "small", "base")
            for row in (
                "coco/mask-rcnn_cswin_{}_fpn_1x",
                "coco/mask-rcnn_cswin_{}_fpn_3x",
                "coco/cascade-mask-rcnn_cswin_{}_fpn_3x",
                "ade20k/semantic-fpn_cswin_{}_80k",
                "ade20k/upernet_cswin_{}_160k",
            )
        ],
    ],
    "l2vit": [
        row.format(size)
        for size in ("tiny", "small", "base")
        for row in (
            "coco/retinanet_l2vit_{}_fpn_1x",
            "coco/retinanet_l2vit_{}_fpn_3x",
            "coco/mask-rcnn_l2vit_{}_fpn_1x",
            "coco/mask-rcnn_l2vit_{}_fpn_3x",
            "ade20k/upernet_l2vit_{}_160k",
        )
    ],
    "davit": [
        row.format(size)
        for size in ("tiny", "small", "base")
        for row in (
            "coco/retinanet_davit_{}_fpn_1x",
            "coco/retinanet_davit_{}_fpn_3x",
            "coco/mask-rcnn_davit_{}_fpn_1x",
            "coco/mask-rcnn_davit_{}_fpn_3x",
            "ade20k/upernet_davit_{}_160k",
        )
    ],
    "maxvit": [f"coco/cascade-mask-rcnn_maxvit_{size}_tf_224_fpn_3x" for size in ("tiny", "small", "base")],
    "shvit": ["coco/retinanet_shvit_s4_fpn_1x", "coco/mask-rcnn_shvit_s4_fpn_1x"],
}
TYPES = {
    "retinanet": "RetinaNet",
    "mask-rcnn": "MaskRCNN",
    "cascade-mask-rcnn": "CascadeRCNN",
    "atss": "ATSS",
    "gfl": "GFL",
    "dino-4scale": "DINO",
    "dino-5scale": "DINO",
    "semantic-fpn": "FPNHead",
    "upernet": "UPerHead",
    "mask2former": "Mask2FormerHead",
}
OPEN = ["retinanet", "mask-rcnn", "cascade-mask-rcnn", "atss", "gfl", "dino-4scale", "dino-5scale"]
OPEN_SEGMENTERS = ["semantic-fpn", "upernet", "mask2former"]
LENGTHS = {"1x": 12, "3x": 36, "12e": 12, "40k": 40_000, "80k": 80_000, "160k": 160_000}
SPLIT = re.compile(
    r"(?P<head>[^_]+)(?:_(?P<variant>\w+?))?(?:_(?P<neck>fpn|mapper))?_(?P<length>1x|3x|12e|40k|80k|160k)"
)
NAMES = [name for name in config_names() if name.startswith(("coco/", "ade20k/"))]
CLASSIFIERS = ("imagenet/", "demo/van", "demo/family")
DEMOS = [name for name in config_names() if name.startswith("demo/") and not name.startswith(CLASSIFIERS)]
WHOLE = [name for name in NAMES if "_base_/models" in find_config(name).read_text()]  # the others inherit one of these
QUICK = [name for name in WHOLE if name.count("/") == 1 or "/shvit/" in name or "/upernet_" in name]
DATA = {re.search("_base_/datasets/(.*).py", find_config(name).read_text())[1]: name for name in WHOLE}


@functools.cache
def read(name: str) -> Config:
    return read_config(name)


@functools.cache
def maps_of(model: str) -> list[dict[str, int]]:
    """Channels and strides of the maps of a timm model."""
    with torch.device("meta"):
        info = timm.create_model(model, features_only=True).feature_info
    return [dict(chs=chs, stride=stride) for chs, stride in zip(info.channels(), info.reduction(), strict=True)]


def taken(config: Config) -> list[dict[str, int]]:
    """The maps that a config's backbone hands on."""
    backbone = config.model.backbone
    maps = maps_of(backbone.model_name)
    return [maps[i] for i in backbone.out_indices]


def build(name: str) -> nn.Module:
    """The whole model of a config, without memory for its weights."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    config = read(name)
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device("meta"):
        return registry.MODELS.build(copy.deepcopy(config.model))


# --- names and heads ---


@pytest.mark.parametrize("family", PUBLISHED)
def test_every_published_row_has_its_config(family: str) -> None:
    rows = [row.replace("/", f"/{family}/") for row in PUBLISHED[family]]
    assert [row for row in rows if row not in NAMES] == []


@pytest.mark.parametrize("family", PUBLISHED)
def test_every_family_has_the_four_usual_heads(family: str) -> None:
    mine = [name.rpartition("/")[2] for name in NAMES if f"/{family}/" in name]
    for head in ("retinanet", "mask-rcnn", "semantic-fpn", "upernet"):
        assert any(name.startswith(f"{head}_") for name in mine)


def test_no_config_is_left_out_of_these_tests() -> None:
    classifiers = [name for name in config_names() if name.startswith(CLASSIFIERS)]
    assert sorted([*NAMES, *DEMOS, *classifiers]) == sorted(config_names())
    assert all("backbone" in read(name).model for name in (*NAMES, *DEMOS))


def test_every_head_is_open_to_all_backbones_once() -> None:
    heads = [name.split("/")[1].split("_")[0] for name in NAMES if name.count("/") == 1]
    assert sorted(heads) == sorted(OPEN + OPEN_SEGMENTERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_head_backbone_and_length(name: str) -> None:
    parts = SPLIT.fullmatch(name.rpartition("/")[2])
    assert parts, name
    config, (data, *family) = read(name), name.split("/")[:-1]
    model = config.model
    assert TYPES[parts["head"]] == (model.decode_head.type if data == "ade20k" else model.type)
    assert LENGTHS[parts["length"]] == config.train_cfg.get("max_epochs", config.train_cfg.get("max_iters"))
    if family:
        assert parts["variant"].startswith(family[0])
        backbone = model.backbone.model_name.split(".")[0].removesuffix("_fused")
        assert re.fullmatch(rf"{backbone}(_ws4|_22k|_22k_640)?", parts["variant"])
    assert config.train_dataloader.dataset.data_root == f"data/{data}"
    assert config.custom_imports == {"imports": ["vertebra.engine"]}
    assert config.runner_type == "VertebraRunner"


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_is_short_and_its_head_says_score_source_size_and_command(name: str) -> None:
    text = find_config(name).read_text()
    assert len(text.splitlines()) < 30
    head = " ".join(line.removeprefix("#").strip() for line in text.split("_base_ =")[0].splitlines())
    assert head.endswith(f"vertebra train {name}")
    assert re.search(r"[\d.]+ M parameters", head)
    assert re.search(r"[\d.]+ (box AP|mIoU)|[Nn]o score published|which was not read", head)
    assert "arXiv" in head or name.count("/") == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_head_says_where_the_weights_are_given_that_no_link_leads_to(name: str) -> None:
    cfg = timm.get_pretrained_cfg(read(name).model.backbone.model_name)
    assert ("pretrained=FILE" in find_config(name).read_text()) is not bool(cfg.url or cfg.hf_hub_id)


# --- what a config has to know of its backbone ---


@pytest.mark.parametrize("name", NAMES)
def test_channels_of_neck_and_heads_are_those_of_the_backbone(name: str) -> None:
    config = read(name)
    model, given = config.model, [entry["chs"] for entry in taken(config)]
    asked = model.neck.in_channels if "neck" in model else model.decode_head.in_channels
    assert list(asked) == given
    if "auxiliary_head" in model:
        aux = model.auxiliary_head
        assert (aux.in_channels, 16) == (given[aux.in_index], taken(config)[aux.in_index]["stride"])


@pytest.mark.parametrize("name", NAMES)
def test_strides_of_the_heads_are_those_of_the_maps(name: str) -> None:
    config = read(name)
    model, strides = config.model, [entry["stride"] for entry in taken(config)]
    neck = model.get("neck", {})
    if neck.get("extra_levels"):
        strides = [strides[0] >> i for i in range(neck.extra_levels, 0, -1)] + strides
    while len(strides) < neck.get("num_outs", 0):
        strides.append(strides[-1] * 2)
    if "rpn_head" in model:
        assert list(model.rpn_head.anchor_generator.strides) == strides
        assert list(model.roi_head.bbox_roi_extractor.featmap_strides) == strides[:4]
    elif "anchor_generator" in model.get("bbox_head", {}):
        assert list(model.bbox_head.anchor_generator.strides) == strides
    elif model.get("decode_head", {}).get("type") == "FPNHead":
        assert list(model.decode_head.feature_strides) == strides
        assert list(model.decode_head.in_channels) == [neck.out_channels] * len(strides)
    elif model.type == "DINO":
        levels = model.encoder.layer_cfg.self_attn_cfg.num_levels
        assert len(strides) == model.num_feature_levels == levels == model.decoder.layer_cfg.cross_attn_cfg.num_levels
    else:
        assert list(model.decode_head.get("strides", strides)) == strides


@pytest.mark.parametrize("name", [*NAMES, *DEMOS])
def test_images_are_normalised_as_the_backbone_was_trained(name: str) -> None:
    model = read(name).model
    cfg = timm.get_pretrained_cfg(model.backbone.model_name)
    assert model.data_preprocessor.mean == pytest.approx([255 * value for value in cfg.mean])
    assert model.data_preprocessor.std == pytest.approx([255 * value for value in cfg.std])


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_batches_are_those_of_the_data(name: str) -> None:
    config = read(name)
    counts = set(re.findall(r"'?num_classes'?[=:] *(\d+)", str(config.model)))
    assert counts == {"80" if name.startswith("coco/") else "150"}
    steps = config.optim_wrapper.get("accumulative_counts", 1)
    assert 8 * steps * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_loaded_where_there_is_a_head_for_them(name: str) -> None:
    if name.startswith("coco/"):
        config = read(name)
        loads = {step["type"]: step for step in config.train_dataloader.dataset.pipeline}
        wanted = "mask_head" in config.model.get("roi_head", {})
        assert loads["LoadAnnotations"].get("with_mask", False) is wanted
        assert config.model.data_preprocessor.get("pad_mask", False) is wanted
        assert ("segm" in config.val_evaluator.metric) is wanted
    else:
        size = read(name).model.data_preprocessor.size
        crop = next(s for s in read(name).train_dataloader.dataset.pipeline if s["type"] == "RandomCrop")
        assert tuple(crop.crop_size) == tuple(size)


@pytest.mark.parametrize("name", NAMES)
def test_one_of_the_views_is_the_image_as_it_is_tested(name: str) -> None:
    config = read(name)
    sized = [step for step in config.test_dataloader.dataset.pipeline if "Resize" in step["type"]]
    views = [step for choices in config.tta_pipeline[-1].transforms for step in choices]
    assert sized
    assert [step for step in sized if step not in views] == []


# --- built, with mmdet and mmseg ---


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.all) for name in NAMES])
def test_a_config_builds_its_model_of_the_size_its_head_says(name: str) -> None:
    head = " ".join(find_config(name).read_text().split("_base_ =")[0].replace("#", "").split())
    said = re.search(r"([\d.]+) M parameters(?: \(([\d.]+) M as built here\))?", head)
    millions = said[2] or said[1]
    built = sum(parameter.numel() for parameter in build(name).parameters()) / 1e6
    # published counts are rounded one way or the other
    assert built == pytest.approx(float(millions), abs=0.25 if "." in millions else 1.0)


@functools.cache
def groups_of(name: str) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter of a config's model."""
    model, wrapper = build(name), read(name).optim_wrapper.to_dict()
    wrapper.pop("loss_scale", None), wrapper.pop("dtype", None)
    paramwise = wrapper.pop("paramwise_cfg", None)
    optimizer = DefaultOptimWrapperConstructor({**wrapper, "type": "OptimWrapper"}, paramwise)(model).optimizer
    values = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {key: values[id(parameter)] for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_builds_its_model(name: str) -> None:
    channels = [entry["chs"] for entry in taken(read(name))]
    assert build(name).backbone.out_channels == channels


@pytest.mark.all
@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_takes_every_parameter(name: str) -> None:
    assert all(rate > 0 and decay >= 0 for rate, decay in groups_of(name).values())


def without_decay(name: str) -> set[str]:
    """Kinds of backbone parameters that do not decay: keys with their numbers left out."""
    exempt = [key for key, (_, decay) in groups_of(name).items() if decay == 0 and key.startswith("backbone.")]
    return {re.sub(r"\d+", "N", key.removeprefix("backbone.").rpartition(".")[0]) for key in exempt}


def test_norms_of_van_do_not_decay() -> None:
    kinds = {"body.stages.N.downsample.norm", "body.stages.N.blocks.N.normN", "body.stages.N.norm"}
    assert without_decay("ade20k/van/upernet_van_b0_160k") == kinds


def test_norms_of_biformer_do_not_decay_but_for_those_between_stages() -> None:
    assert without_decay("coco/biformer/mask-rcnn_biformer_small_fpn_1x") == {"body.stages.N.blocks.N.normN", "norms.N"}
    assert without_decay("coco/biformer/retinanet_biformer_small_fpn_1x") == set()


def test_norms_of_cswin_do_not_decay_but_for_the_stems() -> None:
    groups = groups_of("ade20k/cswin/upernet_cswin_tiny_160k")
    decaying = [key for key, (_, decay) in groups.items() if "norm" in key and decay]
    assert decaying == [f"backbone.body.stages.0.downsample.norm.{kind}" for kind in ("weight", "bias")]
    assert groups["backbone.body.stages.1.downsample.norm.weight"][1] == 0


@pytest.mark.parametrize("name", ["coco/transnext/mask-rcnn_transnext_tiny_fpn_1x"])
def test_what_scales_attention_in_transnext_does_not_decay(name: str) -> None:
    norms = {"downsample.norm", "blocks.N.normN", "blocks.N.attn.norm", "norm"}
    attention = {"blocks.N.attn", "blocks.N.attn.cpb.fcN"}
    assert without_decay(name) == {f"body.stages.N.{kind}" for kind in norms | attention}
    groups = groups_of(name)
    assert groups["backbone.body.stages.0.blocks.0.attn.learnable_tokens"][1] == 0.05
    assert groups["backbone.body.stages.0.blocks.0.attn.temperature"][1] == 0


@pytest.mark.parametrize(
    "name",
    [
        "coco/transnext/dino-4scale_transnext_tiny_mapper_12e",
        pytest.param("coco/transnext/dino-5scale_transnext_base_mapper_12e", marks=pytest.mark.all),
        "ade20k/transnext/mask2former_transnext_tiny_160k",
    ],
)
def test_transnext_beside_a_transformer_learns_slowly_and_decays_matrices_alone(name: str) -> None:
    groups, exempt = groups_of(name), ("query_embedding", "relative_pos_bias_local", "cpb", "temperature", "norm")
    for key, (rate, decay) in groups.items():
        if key.startswith("backbone."):
            spared = key.endswith(".bias") or any(part in key for part in exempt)
            assert (rate, decay) == (pytest.approx(1e-5), 0 if spared else pytest.approx(0.05)), key
        else:
            assert rate == pytest.approx(1e-4), key


def test_all_of_davit_decays() -> None:
    assert {decay for _, decay in groups_of("coco/davit/mask-rcnn_davit_tiny_fpn_1x").values()} == {0.05}


# --- data, hooks and pictures, with mmdet and mmseg ---


def parts_of(config: Config) -> Iterator[tuple[str, Any]]:
    """What a runner would build besides the model, data sets and loops, as (registry, description)."""
    yield "VISUALIZERS", {**config.visualizer, "vis_backends": None}
    for part in ("train", "val", "test"):
        yield from (("TRANSFORMS", step) for step in config[f"{part}_dataloader"].dataset.pipeline)
    yield from (("TRANSFORMS", step) for step in config.get("tta_pipeline", ()))
    yield from (("HOOKS", hook) for hook in config.default_hooks.values())
    yield from (("HOOKS", hook) for hook in config.custom_hooks)
    yield (
        "METRICS",
        {**config.val_evaluator, "ann_file": None} if "ann_file" in config.val_evaluator else (config.val_evaluator),
    )


@pytest.mark.parametrize("name", [*DATA.values(), *DEMOS])
def test_pipelines_metrics_and_hooks_can_be_built(name: str) -> None:
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    config = copy.deepcopy(read(name))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        for kind, description in parts_of(config):
            assert getattr(registry, kind).build(dict(description)) is not None
