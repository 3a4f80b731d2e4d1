"""Our names in libraries that build on timm: segmentation_models_pytorch, transformers, and timm's own folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

pytestmark = pytest.mark.all  # `make test-all` installs these libraries
Depths = Callable[[str], tuple[int, ...]]


@torch.no_grad()
def test_segmentation_models_pytorch_takes_the_name_as_encoder(few_blocks: Depths, name: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    if name.startswith("shvit"):
        with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
            smp.encoders.get_encoder(f"tu-{name}", weights=None)
        return
    encoder = smp.encoders.get_encoder(f"tu-{name}", weights=None, depths=few_blocks(name)).eval()
    maps = encoder(torch.randn(1, 3, 64, 96))
    assert [level.shape[1] for level in maps] == encoder.out_channels
    assert [level.shape[2:] for level in maps] == [(64 // 2**i, 96 // 2**i) for i in range(6)]


@torch.no_grad()
def test_a_unet_of_segmentation_models_pytorch_gives_masks_of_the_images_size(few_blocks: Depths, family: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    if family.startswith("shvit"):
        pytest.skip("strides 16, 32, 64 fit no decoder of that library")
    unet = smp.Unet(f"tu-{family}", encoder_weights=None, classes=3, depths=few_blocks(family)).eval()
    assert unet(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)


@torch.no_grad()
def test_transformers_takes_the_name_as_backbone(few_blocks: Depths, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=[0, 2])
    backbone = transformers.TimmBackbone(config, depths=few_blocks(name)).eval()
    maps = backbone(torch.randn(1, 3, 64, 96)).feature_maps
    assert [level.shape[1] for level in maps] == list(backbone.channels)
    assert len(maps) == 2


@torch.no_grad()
def test_a_model_saved_to_a_folder_comes_back_by_local_dir(
    small: Callable[..., nn.Module], name: str, tmp_path: Path
) -> None:
    model: Any = small(name, num_classes=7)
    depths = [len(stage.blocks) for stage in model.stages]
    save_for_hf(model, tmp_path, model_args={"depths": depths})
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert loaded.num_classes == 7
    assert torch.equal(loaded(x), model(x))
