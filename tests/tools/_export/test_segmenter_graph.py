"""Segmenters as graphs answer as mmseg does, and their parts as those that they stand for."""

import pytest
import torch
from torch import nn

pytest.importorskip("mmseg")

import vertebra.engine  # noqa: F401  stands in for mmcv's operators, before mmseg asks for them
from mmseg.models.utils import Upsample
from mmseg.structures import SegDataSample
from small_exports import small_segmenter
from vertebra.tools._export.segmenter_graph import BinMeans, Enlarge, SegmenterGraph, pad


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 9), (12, 18), (5, 7), (1, 2)])
def test_means_of_bins_are_those_of_adaptive_pooling(bins: int, size: tuple[int, int]) -> None:
    x = noise(2, 4, *size)
    torch.testing.assert_close(BinMeans(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


def test_padding_fills_up_to_multiples_or_to_a_least_size() -> None:
    image = noise(1, 3, 33, 64)
    assert pad(image, 32).shape == (1, 3, 64, 64)
    assert pad(image, 1).shape == (1, 3, 33, 64)
    assert pad(image, 1, (40, 50)).shape == (1, 3, 40, 64)
    assert torch.equal(pad(image, 32)[:, :, :33], image)
    assert not pad(image, 32)[:, :, 33:].any()


@pytest.mark.parametrize("head", ["semantic-fpn", "upernet"])
@pytest.mark.parametrize("size", [(75, 90), pytest.param((64, 96), marks=pytest.mark.all)], ids=["padded", "whole"])
def test_graph_answers_as_mmseg_does(head: str, size: tuple[int, int]) -> None:
    model = small_segmenter(head, test_cfg={"size_divisor": 32})
    meta = {"img_shape": size, "ori_shape": size, "pad_shape": size}
    pixels = noise(3, *size) * 60 + 120
    batch = {"inputs": [pixels], "data_samples": [SegDataSample(metainfo=meta)]}
    normalised = (pixels.flip(0) - model.data_preprocessor.mean) / model.data_preprocessor.std
    with torch.inference_mode():
        expected = model.test_step(batch)[0].seg_logits.data
        found = SegmenterGraph(model).eval()(normalised[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_graphs_parts_leave_the_model_as_it_was_and_share_its_weights() -> None:
    model = small_segmenter("upernet")
    graph = SegmenterGraph(model)
    pools = [sum(isinstance(m, kind) for m in part.modules()) for part, kind in ((model, BinMeans), (graph, BinMeans))]
    assert pools == [0, 4]
    assert graph.model.decode_head.conv_seg.weight is model.decode_head.conv_seg.weight


def test_enlarging_is_what_mmsegs_upsample_does() -> None:
    x = noise(1, 2, 5, 7)
    expected = Upsample(scale_factor=2, mode="bilinear", align_corners=False)(x)
    assert torch.equal(Enlarge(2, "bilinear", False)(x), expected)
