"""Test-time augmentation: what is seen in several views comes together in the image, exactly."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones._errors import UserError
from vertebra.engine import tta
from vertebra.engine.classifier import TimmClassifier
from vertebra.engine.config import change, read_config

HEIGHT, WIDTH = 64, 96
OBJECTS = torch.tensor([[8.0, 8.0, 40.0, 24.0], [64.0, 32.0, 88.0, 56.0]])  # in red, in green
LABELS = torch.tensor([0, 1])


def picture() -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for channel, (left, top, right, bottom) in enumerate(OBJECTS.int().tolist()):
        image[top:bottom, left:right, channel] = 255
    return image


def views(ratios: tuple[float, ...], flips: bool, scope: str = "mmdet") -> dict[str, Any]:
    """A batch of one picture in several views, as a loader gives it."""
    pytest.importorskip(scope)
    init_default_scope(scope)
    pack = "PackDetInputs" if scope == "mmdet" else "PackSegInputs"
    pipeline = [
        dict(type="LoadImageFromNDArray"),
        dict(type="Resize", scale=(WIDTH, HEIGHT), keep_ratio=True),
        dict(type=pack),
    ]
    return pseudo_collate([Compose(tta.views_of(pipeline, ratios, flips))({"img": picture(), "img_id": 0})])


class Finder(nn.Module):
    """A detector that finds all that is bright, surest in views that are large and flipped."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks
        self.test_cfg = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 5}

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        for pixels, sample in zip(data["inputs"], data["data_samples"], strict=True):
            bright = pixels[:2] > 127  # (2, H, W)
            boxes = [[*inside.any(0).nonzero()[[0, -1], 0], *inside.any(1).nonzero()[[0, -1], 0]] for inside in bright]
            corners = torch.tensor(boxes)[:, [0, 2, 1, 3]].float() + torch.tensor([0.0, 0.0, 1.0, 1.0])
            found = InstanceData(bboxes=corners / torch.tensor(sample.scale_factor).repeat(2), labels=LABELS)
            found.scores = torch.full((2,), pixels.shape[2] / 1000 + 0.1 * bool(sample.get("flip")))
            if self.masks:
                found.masks = functional.interpolate(bright[None].float(), (HEIGHT, WIDTH))[0] > 0.5
            sample.pred_instances = found
        return data["data_samples"]


@pytest.mark.parametrize("flips", [False, True])
def test_what_all_views_find_is_found_once_and_where_it_is(flips: bool) -> None:
    model = tta.DetectorTTA(Finder(masks=True))
    (sample,) = model.test_step(views((1.0, 2.0), flips))
    found = sample.pred_instances
    order = found.labels.argsort()
    assert torch.equal(found.labels[order], LABELS)
    assert torch.equal(found.bboxes[order], OBJECTS)
    expected = torch.from_numpy(picture()).permute(2, 0, 1)[:2] > 0
    assert torch.equal(found.masks[order], expected)
    torch.testing.assert_close(found.scores, torch.full((2,), 0.192 + 0.1 * flips))  # of the surest view


def test_no_more_boxes_leave_than_asked_for() -> None:
    model = tta.DetectorTTA(Finder(masks=False), tta_cfg={"max_per_img": 1})
    (sample,) = model.test_step(views((1.0,), flips=True))
    assert len(sample.pred_instances) == 1


# --- masks of regions ---

SMALL = {
    "model.backbone.model_name": "van_b0",
    "model.backbone.pretrained": False,
    "model.backbone.depths": (1, 1, 1, 1),
    "model.neck.in_channels": [32, 64, 160, 256],
    "model.test_cfg.rpn.max_per_img": 20,
}


def detector(name: str) -> Any:
    """A small one of this config, the same at every call."""
    config = read_config(name)
    change(config, SMALL)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    model.init_weights()
    return model


def plain_view() -> dict[str, Any]:
    """The picture as the only view."""
    return tta.split_views(views((1.0,), flips=False))[0]


@pytest.mark.parametrize("name", ["coco/mask-rcnn_fpn_1x", "coco/cascade-mask-rcnn_fpn_1x"])
def test_one_plain_view_gives_what_the_detector_gives(name: str) -> None:
    pytest.importorskip("mmdet")
    model = detector(name)
    stages = getattr(model.roi_head, "bbox_head", None)
    for head in stages if isinstance(stages, nn.ModuleList) else [stages]:
        head.fc_cls.bias.data[:3] += 4  # something is found
    with torch.no_grad():
        expected = model.test_step(plain_view())[0].pred_instances
        found = tta.DetectorTTA(model).test_step(views((1.0,), flips=False))[0].pred_instances
    assert len(expected)
    torch.testing.assert_close(found.bboxes, expected.bboxes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)
    assert found.masks.any()
    assert (found.masks != expected.masks).double().mean() < 1e-4


def test_masks_of_flipped_and_scaled_views_are_those_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made head marks what is red, and sees the maps at the merged boxes alone."""
    pytest.importorskip("mmdet")
    model = detector("coco/mask-rcnn_fpn_1x")
    head = model.roi_head
    box = torch.tensor([[0.0, 0.0, 60.0, 40.0]])  # more than the red object fills, off the middle of the picture

    def found(maps: Any, metas: list[dict], *_: Any, **__: Any) -> list[InstanceData]:
        places = [tta.turned_back(InstanceData(bboxes=box.clone()), meta).bboxes for meta in metas]
        return [InstanceData(bboxes=place, labels=LABELS[:1], scores=torch.ones(1)) for place in places]

    def reds(maps: Tensor, rois: Tensor) -> dict[str, Tensor]:
        from torchvision.ops import roi_align

        red = roi_align(maps[:, -1:], rois, 28, aligned=True)  # the preprocessor turns red to the last channel
        return {"mask_preds": red.repeat(1, 80, 1, 1)}

    monkeypatch.setattr(model, "extract_feat", lambda inputs: inputs)
    monkeypatch.setattr(model.rpn_head, "predict", lambda *_, **__: None)
    monkeypatch.setattr(head, "predict_bbox", found)
    monkeypatch.setattr(head, "_mask_forward", reds)
    (sample,) = tta.DetectorTTA(model).test_step(views((1.0, 1.5), flips=True))
    expected = torch.from_numpy(picture())[..., 0] > 0
    wrong = (sample.pred_instances.masks[0] != expected).double().mean()
    assert torch.equal(sample.pred_instances.bboxes, box)
    assert wrong < 0.02  # along the edges, which 28 x 28 points do not meet


def test_an_image_without_finds_has_no_masks() -> None:
    pytest.importorskip("mmdet")
    model = detector("coco/mask-rcnn_fpn_1x")
    model.roi_head.test_cfg.score_thr = 1.1
    (sample,) = tta.DetectorTTA(model).test_step(views((1.0,), flips=True))
    assert sample.pred_instances.masks.shape == (0, HEIGHT, WIDTH)


# --- segmenters ---


def segmenter() -> tuple[nn.Module, list[list[Any]], Tensor]:
    """A made segmenter of four classes, samples of three views of two images, and their logits."""
    from mmseg.structures import SegDataSample

    logits = torch.randn(3, 2, 4, 6, 5, generator=torch.manual_seed(0))
    samples = [
        [SegDataSample(seg_logits=PixelData(data=image.clone()), metainfo={"img_path": "a.png"}) for image in view]
        for view in logits
    ]
    module = nn.Identity()
    module.out_channels, module.decode_head, module.test_step = 4, SimpleNamespace(threshold=0.3), lambda view: view
    return module, samples, logits


def test_a_segmenter_takes_the_mean_of_the_views_as_mmseg_does() -> None:
    theirs = pytest.importorskip("mmseg.models.segmentors.seg_tta").SegTTAModel
    module, samples, logits = segmenter()
    expected = logits.softmax(2).mean(0)  # (images, classes, H, W)
    reference = theirs(module).merge_preds([[one.clone() for one in image] for image in zip(*samples, strict=True)])
    found = tta.SegmenterTTA(module).merge_preds(list(zip(*samples, strict=True)))
    for image in range(2):
        torch.testing.assert_close(found[image].seg_logits.data, expected[image])
        assert torch.equal(found[image].pred_sem_seg.data, expected[image].argmax(0, keepdim=True))
        assert torch.equal(found[image].pred_sem_seg.data, reference[image].pred_sem_seg.data)


def test_a_segmenter_holds_the_probabilities_of_one_view_at_a_time() -> None:
    pytest.importorskip("mmseg")
    module, samples, _ = segmenter()
    alive: list[int] = []

    def test_step(view: dict[str, Any]) -> list[Any]:
        alive.append(sum("seg_logits" in sample for samples_of_view in samples for sample in samples_of_view))
        return view["data_samples"]

    module.test_step = test_step
    tta.SegmenterTTA(module).test_step({"inputs": [None] * 3, "data_samples": samples})
    assert alive == [6, 4, 2]


def test_flipped_views_of_a_segmenter_come_back_as_the_image_lies() -> None:
    pytest.importorskip("mmseg")
    init_default_scope("mmseg")
    model: Any = MODELS.build(
        dict(
            type="EncoderDecoder",
            data_preprocessor=dict(type="SegDataPreProcessor"),
            backbone=dict(type="TimmPyramid", model_name="van_b0", depths=(1, 1, 1, 1), out_indices=(0,)),
            decode_head=dict(
                type="FCNHead", in_channels=32, channels=32, num_classes=3, num_convs=0, concat_input=False
            ),
            test_cfg=ConfigDict(mode="whole"),
        )
    ).eval()
    model.encode_decode = lambda inputs, metas: inputs  # the classes are the channels
    (sample,) = tta.SegmenterTTA(model).test_step(views((0.5, 1.0), flips=True, scope="mmseg"))
    red = sample.pred_sem_seg.data[0][torch.from_numpy(picture())[..., 0] > 0]
    assert (red == 0).double().mean() > 0.99
    assert sample.pred_sem_seg.data.shape == (1, HEIGHT, WIDTH)


# --- classifiers ---


def test_a_classifier_takes_the_mean_of_its_views() -> None:
    torch.manual_seed(0)
    model = TimmClassifier("van_b0", num_classes=3, depths=(1, 1, 1, 1)).eval()
    data = {"inputs": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), "targets": torch.arange(4) % 3}
    images = model.data_preprocessor(data)["inputs"]
    larger = functional.interpolate(images, (48, 48), mode="bilinear")[..., 8:40, 8:40]
    seen = [images, images.flip(-1), larger, larger.flip(-1)]
    with torch.no_grad():
        expected = torch.stack([model.backbone(view).softmax(1) for view in seen]).mean(0)
    (found,) = tta.ClassifierTTA(model, zooms=(1.0, 1.5)).test_step(data)
    torch.testing.assert_close(found["logits"].exp(), expected)
    assert torch.equal(found["targets"], data["targets"])


# --- which views there are ---


def test_a_config_without_views_of_its_own_gets_its_test_pipeline_at_several_scales() -> None:
    config = Config(dict(read_config("coco/mask-rcnn_fpn_1x")))
    config.tta_pipeline = None
    config.tta_model = dict(type="DetTTAModel", tta_cfg=dict(max_per_img=7))
    inner = config.model
    assert tta.use_views(config) == 6
    scales, flips, loads, packs = config.test_dataloader.dataset.pipeline[1].transforms
    assert [step.scale for step in scales] == [(1066, 640), (1333, 800), (1666, 1000)]
    assert [step.prob for step in flips] == [0.0, 1.0]
    assert [step.type for step in (*loads, *packs)] == ["LoadAnnotations", "PackDetInputs"]
    assert {"flip", "flip_direction", "img_id"} <= set(packs[0].meta_keys)
    assert config.model.type == "DetectorTTA"
    assert config.model.tta_cfg.max_per_img == 7
    assert config.model.module == inner


def test_data_sets_that_are_joined_come_in_views_too() -> None:
    config = Config(dict(read_config("coco/mask-rcnn_fpn_1x")))
    config.tta_pipeline = None
    one = config.test_dataloader.dataset
    config.test_dataloader.dataset = dict(type="ConcatDataset", datasets=[one, dict(type="RepeatDataset", dataset=one)])
    assert tta.use_views(config) == 6
    first, second = config.test_dataloader.dataset.datasets
    assert [step.type for step in first.pipeline] == ["LoadImageFromFile", "TestTimeAug"]
    assert second.dataset.pipeline == first.pipeline


def test_test_data_without_a_pipeline_is_refused() -> None:
    config = Config(dict(read_config("coco/mask-rcnn_fpn_1x")))
    config.tta_pipeline = None
    del config.test_dataloader.dataset["pipeline"]
    with pytest.raises(UserError, match="test_dataloader's data has no pipeline to make views of"):
        tta.use_views(config)


def test_views_of_a_config_are_taken() -> None:
    config = read_config("ade20k/upernet_160k")
    given = config.tta_pipeline
    assert tta.use_views(config) == 12
    assert config.test_dataloader.dataset.pipeline == given
    assert config.model.type == "SegmenterTTA"


@pytest.mark.parametrize(("name", "count"), [("demo/van_b0_digits", 3), ("demo/retinanet_digits", 3)])
def test_what_training_never_flips_is_not_flipped(name: str, count: int) -> None:
    assert tta.use_views(read_config(name)) == count
    assert tta.use_views(read_config(name), flips=True) == 2 * count
