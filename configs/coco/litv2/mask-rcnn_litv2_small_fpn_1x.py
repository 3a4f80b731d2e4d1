# LITv2-S, Mask R-CNN, 12 epochs of COCO: 44.9 box AP, 40.8 mask AP as published (arXiv 2205.13213), 47 M parameters,
# 261 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/mask-rcnn_litv2_small_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
# the authors' detectors leave the first map without a norm
model = dict(
    backbone=dict(model_name="litv2_small", drop_path_rate=0.2, out_norms=dict(type="LN", eps=1e-5, indices=(1, 2, 3))),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    optimizer=dict(lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
