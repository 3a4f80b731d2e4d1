"""Files as the authors' detection and segmentation code writes them, from the weights of tests/golden.

mmdet 2 and mmseg 0 save a dictionary with `meta`, `state_dict` and `optimizer`; the model's keys begin with `backbone.`
there.
"""

import torch
from torch import Tensor

# file of tests/golden: name of ours, what dense code leaves out, its output norms, and the map that the first is for
AUTHORS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], int]] = {
    "van_b0": ("van_b0", ("head.",), (), 0),
    "transnext_micro": ("transnext_micro", ("head.",), (), 0),
    "shvit_s1.official": ("shvit_s1_fused", ("head.",), (), 0),
    "davit_tiny.official": ("davit_tiny_fused", ("head.", "norms."), ("norm0", "norm1", "norm2", "norm3"), 0),
    "l2vit_tiny": ("l2vit_tiny", ("head.", "norm."), ("norm0", "norm1", "norm2", "norm3"), 0),
    "litv2_small": ("litv2_small", ("head.", "norm."), ("norm1", "norm2", "norm3"), 1),
    "biformer_tiny_dense": ("biformer_tiny", (), tuple(f"extra_norms.{i}" for i in range(4)), 0),
    "cswin_tiny_dense": ("cswin_tiny", (), ("norm1", "norm2", "norm3", "norm4"), 0),
}


def authors_backbone(weights: dict[str, Tensor], stem: str, channels: list[int]) -> dict[str, Tensor]:
    """The backbone's part of a detector's file: the trunk, and output norms that no initialisation gives.

    Args:
        weights: of the golden file, under the authors' keys.
        stem: which one, of `AUTHORS`.
        channels: of all maps of the model.
    """
    _, left_out, norms, first = AUTHORS[stem]
    trunk = {f"backbone.{key}": value for key, value in weights.items() if not key.startswith(left_out or "!")}
    for prefix, width in zip(norms, channels[first:], strict=False):
        for part in ("weight", "bias"):
            trunk.setdefault(f"backbone.{prefix}.{part}", torch.rand(width))
    return trunk
