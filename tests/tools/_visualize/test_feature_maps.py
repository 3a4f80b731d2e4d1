"""What leaves a module becomes a map whose pixels lie where the image's do."""

import pytest
import timm
import torch
from vertebra.tools._visualize.feature_maps import as_map, captured, feature_maps


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "hiera_tiny_224"])
def test_maps_are_those_that_timm_gives(name: str) -> None:
    small = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)} if name.startswith("hiera") else {}
    model = timm.create_model(name, **small).eval()
    features = feature_maps(model)
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad(), captured(model, list(features)) as results:
        expected = model.forward_intermediates(images, intermediates_only=True, norm=False)
    for feature, theirs in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(as_map(model, feature, results[feature.layer], images), theirs)
