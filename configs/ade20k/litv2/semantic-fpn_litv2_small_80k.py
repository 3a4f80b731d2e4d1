# LITv2-S, Semantic FPN, 80 000 iterations of ADE20K: 44.3 mIoU as published (arXiv 2205.13213), 31 M parameters,
# 41 GFLOPs (512 x 512).
#   vertebra train ade20k/litv2/semantic-fpn_litv2_small_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="litv2_small", drop_path_rate=0.2, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=False)]
