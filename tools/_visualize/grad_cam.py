"""Grad-CAM: where in a feature map a class has its reasons.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017,
https://arxiv.org/abs/1610.02391
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._visualize.feature_maps import FeatureMap, as_map, captured


def grad_cam(
    model: nn.Module, images: Tensor, features: Sequence[FeatureMap], target: int | None = None
) -> tuple[list[Tensor], Tensor]:
    """relu of the sum of a map's channels, each weighed by the mean gradient of the class's logit with respect to it.

    Args:
        model: a classifier in eval mode.
        images: (1, 3, H, W), normalised.
        features: maps of `model` that lead to the logits.
        target: the class; None takes the one predicted.

    Returns:
        A map (h, w) for each of the features, 0 or more, and the logits (classes,).

    Raises:
        UserError: the model has no classifier, or a feature does not lead to the logits.
    """
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad(), captured(model, [feature.layer for feature in features]) as results:
        logits = model(images)
    if logits.dim() != 2 or not getattr(model, "num_classes", logits.shape[1]):
        raise UserError(f"{type(model).__name__} has no classifier (num_classes is 0), so there is no class to explain")
    of = int(logits[0].argmax()) if target is None else target
    outputs = [results[feature.layer] for feature in features]
    gradients = torch.autograd.grad(logits[0, of], outputs, allow_unused=True)
    cams = []
    for feature, output, gradient in zip(features, outputs, gradients, strict=True):
        if gradient is None:
            raise UserError(f"the logits do not depend on what leaves {feature.layer}; another --layer may do")
        values, slopes = (as_map(model, feature, x, images)[0].detach() for x in (output, gradient))
        cams.append((slopes.mean((1, 2), keepdim=True) * values).sum(0).relu())
    return cams, logits[0].detach()
