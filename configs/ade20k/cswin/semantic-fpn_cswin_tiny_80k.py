# CSWin-T, Semantic FPN, 80 000 iterations of ADE20K: 48.2 mIoU as published (arXiv 2107.00652), 26 M parameters,
# 202 GFLOPs (2048 x 512).
# Not verified, since there is no code of the authors for this head: the recipe; PVT's, drop path as in their UPerNet.
#   vertebra train ade20k/cswin/semantic-fpn_cswin_tiny_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="cswin_tiny", drop_path_rate=0.3, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
