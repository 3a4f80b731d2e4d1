"""Grad-CAM is the formula of its paper, whatever the layout of the maps."""

import pytest
import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._visualize.feature_maps import feature_maps
from vertebra.tools._visualize.grad_cam import grad_cam


class Toy(nn.Module):
    """A map of three channels, and logits that are linear in it."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.output_fmt = "NHWC" if layout == "NHWC" else "NCHW"
        self.num_classes = 5
        self.num_prefix_tokens = 1
        self.feature_info = [{"module": "body", "num_chs": 3, "reduction": 2}]
        self.cells = nn.Conv2d(3, 3, 2, stride=2)
        self.body = nn.Identity()
        self.unused = nn.Identity()
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.cells(images)
        self.unused(x * 2)
        if self.layout == "NCHW":
            return self.head(self.body(x).mean((2, 3)))
        x = x.permute(0, 2, 3, 1)
        if self.layout == "NHWC":
            return self.head(self.body(x).mean((1, 2)))
        tokens = torch.cat([torch.ones(len(x), 1, 3), x.flatten(1, 2)], 1)
        return self.head(self.body(tokens)[:, 1:].mean(1))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
@pytest.mark.parametrize("size", [(8, 12), (6, 6)])  # 6 x 6: the map has as many rows as channels
def test_it_is_the_weighed_sum_of_channels_cut_at_0(layout: str, size: tuple[int, int]) -> None:
    model, images = Toy(layout), torch.randn(1, 3, *size)
    (cam,), logits = grad_cam(model, images, list(feature_maps(model).values()), 4)
    values = model.cells(images)[0]
    slopes = model.head.weight[4] / values[0].numel()
    expected = (slopes[:, None, None] * values).sum(0).clamp(min=0)
    assert 0 < (expected > 0).sum() < expected.numel()
    torch.testing.assert_close(cam, expected.detach())
    torch.testing.assert_close(logits, model(images)[0].detach())


def test_without_a_class_it_is_that_of_the_predicted_one() -> None:
    model, images = Toy("NCHW"), torch.randn(1, 3, 8, 8)
    features = list(feature_maps(model).values())
    predicted = int(model(images)[0].argmax())
    assert torch.equal(grad_cam(model, images, features)[0][0], grad_cam(model, images, features, predicted)[0][0])


def test_a_map_that_does_not_lead_to_the_logits_is_named() -> None:
    model = Toy("NCHW")
    model.feature_info[0]["module"] = "unused"
    with pytest.raises(UserError, match="do not depend on what leaves unused"):
        grad_cam(model, torch.randn(1, 3, 8, 8), list(feature_maps(model).values()))


def test_a_model_that_lists_no_maps_is_refused() -> None:
    with pytest.raises(UserError, match="Linear lists no feature maps"):
        feature_maps(nn.Linear(2, 2))
