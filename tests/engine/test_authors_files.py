"""The authors' whole detectors and segmenters load under mmdet 2's and mmseg 0's key names, and the rest is told.

Backbone keys are those of the golden files. Names of necks and heads are mmdet 2's and mmseg 0's as remembered, for no
file of the authors was at hand; they differ from today's in the transformers of DINO and Mask2Former alone.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
import vertebra.engine  # noqa: F401  stands in for mmcv's operators, before mmdet asks for them
from authors_files import AUTHORS, authors_backbone
from mmengine.registry import DefaultScope
from small_dense import SEGMENTERS, build, images, put_model, small_config
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.backbones._errors import UserError
from vertebra.engine.dense import load_dense, rename

STEMS = {name.split("_")[0]: stem for stem, (name, *_) in AUTHORS.items()}
PUBLISHED = {
    "van": ("retinanet", "mask-rcnn", "cascade-mask-rcnn", "atss", "gfl", "semantic-fpn", "upernet"),
    "biformer": ("retinanet", "mask-rcnn", "semantic-fpn", "upernet"),
    "transnext": ("mask-rcnn", "dino-4scale", "dino-5scale", "upernet", "mask2former"),
    "litv2": ("retinanet", "mask-rcnn", "semantic-fpn"),
    "cswin": ("mask-rcnn", "cascade-mask-rcnn", "semantic-fpn", "upernet"),
    "l2vit": ("retinanet", "mask-rcnn", "upernet"),
    "davit": ("retinanet", "mask-rcnn", "upernet"),
    "shvit": ("retinanet", "mask-rcnn"),
}
PAIRS = [(head, family) for family, heads in PUBLISHED.items() for head in heads]
QUICK = {("mask-rcnn", "shvit"), ("mask2former", "transnext")}
META = {  # as mmcv 1 writes it
    "mmdet_version": "2.28.2",
    "CLASSES": ("person", "bicycle"),
    "PALETTE": [(220, 20, 60), (119, 11, 32)],
    "config": "model = dict(type='RetinaNet')\n",
    "env_info": "sys.platform: linux",
    "hook_msgs": {},
    "epoch": 12,
    "iter": 87960,
}


def of_mmdet_2(key: str) -> str:
    """The name that a parameter of a transformer had in mmdet 2; other names have not changed."""
    if ".layers." in key:
        first, second = ("cross", "self") if "transformer_decoder" in key else ("self", "cross")
        key = key.replace(f".{first}_attn.", ".attentions.0.").replace(f".{second}_attn.", ".attentions.1.")
        key = re.sub(r"(layers\.\d+)\.ffn\.", r"\1.ffns.0.", key)
    inside = {"memory_trans_fc": "enc_output", "memory_trans_norm": "enc_output_norm", "level_embed": "level_embeds"}
    part, dot, rest = key.partition(".")
    if part in ("encoder", "decoder", *inside):
        return f"bbox_head.transformer.{inside.get(part, part)}{dot}{rest}"
    return f"bbox_head.{key}" if part == "query_embedding" else key


def save_as_authors(path: Path, model: nn.Module, backbone: dict[str, Tensor], name: Callable[[str], str]) -> None:
    """A file of mmcv 1 with this backbone, and the model's neck and heads."""
    heads = {
        name(key): value
        for key, value in model.state_dict().items()
        if not key.startswith("backbone.") and not key.endswith("num_batches_tracked")
    }
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"meta": META, "state_dict": backbone | heads, "optimizer": optimizer}, path)


def shake(model: nn.Module) -> None:
    """Weights and statistics that no initialisation gives."""
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not key.startswith("backbone."):
            value.add_(0.02 * torch.rand(value.shape))


def predictions(model: nn.Module, head: str, scope: str) -> list[Tensor]:
    with DefaultScope.overwrite_default_scope(scope):
        samples = model.eval().test_step(images(head))
    if head in SEGMENTERS:
        return [sample.seg_logits.data for sample in samples]
    return [getattr(sample.pred_instances, part) for sample in samples for part in ("bboxes", "scores")]


@pytest.mark.parametrize(
    ("head", "family"),
    [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.all, id="-".join(pair)) for pair in PAIRS],
)
def test_a_whole_file_makes_the_model_that_it_came_from(
    head: str, family: str, golden: Callable[[str], Any], tmp_path: Path
) -> None:
    stem = STEMS[family]
    config = small_config(head, family)
    put_model(config, AUTHORS[stem][0])
    trained, model = build(config), build(config)
    channels = [entry["num_chs"] for entry in trained.backbone.body.feature_info]
    backbone = authors_backbone(golden(stem).weights(), stem, channels)
    if family == "litv2" and head in SEGMENTERS:  # whose detectors alone leave the first map without a norm
        backbone |= {f"backbone.norm0.{part}": torch.rand(channels[0]) for part in ("weight", "bias")}
    trained.backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in backbone.items()})
    shake(trained)
    save_as_authors(tmp_path / "f.pth", trained, backbone, of_mmdet_2)
    said = load_dense(model, read_checkpoint(tmp_path / "f.pth"), "f.pth", training=False)
    norms = [key for key in backbone if unused_norm(key, stem, trained)]
    assert said == ([f"f.pth: {', '.join(norms)} in it are not used"] if norms else [])
    expected = trained.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, expected[key])] == []
    scope = config.default_scope
    for found, wanted in zip(predictions(model, head, scope), predictions(trained, head, scope), strict=True):
        assert torch.equal(found, wanted)


def unused_norm(key: str, stem: str, model: nn.Module) -> bool:
    """Whether an authors' norm is of a map that this detector does not take."""
    _, _, norms, first = AUTHORS[stem]
    numbers = {prefix: str(number + first) for number, prefix in enumerate(norms)}
    prefix = key.removeprefix("backbone.").rpartition(".")[0]
    return prefix in numbers and numbers[prefix] not in model.backbone.norms


@pytest.fixture
def small_file(tmp_path: Path) -> tuple[Any, dict[str, Tensor]]:
    """VAN's RetinaNet with one block a stage, and the weights of a file for it."""
    config = small_config("retinanet", "van")
    return config, build(config).state_dict()


def test_what_a_file_lacks_and_what_is_left_over_is_told(small_file: tuple[Any, dict[str, Tensor]]) -> None:
    config, weights = small_file
    file = {key: value for key, value in weights.items() if not key.startswith("bbox_head.retina_cls")}
    file = {key.replace("backbone.body.", "backbone."): value for key, value in file.items()}
    file |= {"backbone.head.fc.bias": torch.zeros(7), "ema_neck_bias": torch.zeros(1)}
    said = load_dense(build(config), {"state_dict": file}, "f.pth", training=True)
    assert said == [
        f"f.pth: bbox_head.retina_cls start anew (2 of {len(weights)} tensors)",
        "f.pth: backbone.head.fc.bias, ema_neck_bias in it are not used",
    ]


def test_a_file_with_the_backbone_of_another_model_is_refused_by_its_name(
    small_file: tuple[Any, dict[str, Tensor]],
) -> None:
    config, weights = small_file
    other = build(small_config("retinanet", "van", depths=(1, 2, 1, 1))).backbone.body.state_dict()
    file = {key: value for key, value in weights.items() if not key.startswith("backbone.")}
    file |= {f"backbone.{key}": value for key, value in other.items()}
    with pytest.raises(UserError, match=r"checkpoint f\.pth.*does not fit van_b0.*stages\.1\.blocks\.1"):
        load_dense(build(config), {"state_dict": file}, "f.pth", training=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bbox_head.transformer.encoder.layers.0.attentions.0.value_proj.bias", "encoder.layers.0.self_attn."),
        ("bbox_head.transformer.decoder.layers.3.attentions.1.value_proj.bias", "decoder.layers.3.cross_attn."),
        ("decode_head.transformer_decoder.layers.3.attentions.0.attn.out_proj.bias", "3.cross_attn.attn."),
        ("decode_head.pixel_decoder.encoder.layers.1.ffns.0.layers.1.bias", "encoder.layers.1.ffn.layers.1.bias"),
        ("bbox_head.transformer.enc_output_norm.bias", "memory_trans_norm.bias"),
        ("bbox_head.transformer.reference_points.bias", "reference_points_fc.bias"),
    ],
)
def test_transformers_of_mmdet_2_have_todays_names(old: str, new: str) -> None:
    assert new in rename(old)
