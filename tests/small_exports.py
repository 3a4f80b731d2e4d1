"""Detectors and segmenters that are quick to trace, with scores far enough apart to be told in any arithmetic."""

from typing import Any

import torch
from mmengine.logging import MMLogger
from small_dense import build, small_config
from torch import nn
from vertebra.tools._dense import Dense

BACKBONE = "test_resnet"  # of timm: four stages at strides 4 to 32, and a hundredth of the smallest model of ours


def small_detector(head: str, backbone: str = BACKBONE) -> Any:
    """A seeded detector in eval mode, whose boxes have scores all over the range."""
    return spread(_built(head, backbone))


def small_segmenter(head: str, backbone: str = BACKBONE, **preprocessing: Any) -> Any:
    """A seeded segmenter in eval mode; `preprocessing` goes into its data_preprocessor."""
    return _built(head, backbone, **preprocessing)


def dense(model: Any, segments: bool, steps: Any = (), prepare: Any = None) -> Dense:
    """What `load_dense_target` would make of a model, with two classes that have names."""
    return Dense(model, ["one", "two"], [(200, 0, 0), (0, 0, 200)], prepare, segments, list(steps))


def _built(head: str, backbone: str, **preprocessing: Any) -> Any:
    MMLogger.get_instance("mmengine").setLevel("ERROR")
    torch.manual_seed(0)
    config = small_config(head, backbone)
    config.model.data_preprocessor.update(preprocessing)
    return build(config).eval()


def spread(model: Any) -> Any:
    """The model itself, in eval mode, with scores far apart.

    Fresh weights give all anchors about one score: what is first and what is suppressed would be chance. Logits that
    are too large do so too: many sigmoids are then 1 to the last digits.
    """
    draw = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name.rpartition(".")[2] in ("rpn_cls", "retina_cls", "fc_cls"):
            gain = min(0.3, 4.8 / module.weight[0].numel() ** 0.5)
            module.weight.data = torch.randn(module.weight.shape, generator=draw) * gain
            module.bias.data.zero_()
        elif name.endswith(("rpn_reg", "retina_reg", "fc_reg", "mask_head.conv_logits")):
            module.weight.data = torch.randn(module.weight.shape, generator=draw) * 0.05
    for head, layer in (("rpn_head", "rpn_cls"), ("bbox_head", "retina_cls")):
        if hasattr(getattr(model, head, None), layer):
            _scale_logits(model.eval(), getattr(model, head), getattr(getattr(model, head), layer))
    return model.eval()


def _scale_logits(model: Any, head: Any, layer: nn.Conv2d) -> None:
    """Make the standard deviation of a head's logits 1.5: how large a backbone's maps are differs by family."""
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2)))
        logits = torch.cat([level.flatten() for level in head(maps)[0]])
    layer.weight.data *= 1.5 / logits.std()
