# DaViT-Tiny, RetinaNet, 12 epochs of COCO in many sizes: 44.0 box AP as published (arXiv 2204.03645),
# 38.5 M parameters, 244 GFLOPs.
#   vertebra train coco/davit/retinanet_davit_tiny_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco_multiscale.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="davit_tiny_fused", drop_path_rate=0.1, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[192, 384, 768]),
)
