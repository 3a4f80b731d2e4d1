# DaViT-Tiny, Mask R-CNN, 12 epochs of COCO in many sizes: 45.0 box AP, 41.1 mask AP as published (arXiv 2204.03645),
# 47.8 M parameters, 263 GFLOPs.
#   vertebra train coco/davit/mask-rcnn_davit_tiny_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks_multiscale.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="davit_tiny_fused", drop_path_rate=0.1, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
