# LITv2-S, RetinaNet, 12 epochs of COCO: 44.0 box AP as published (arXiv 2205.13213), 38 M parameters, 242 GFLOPs (1280
# x 800).
#   vertebra train coco/litv2/retinanet_litv2_small_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="litv2_small", drop_path_rate=0.2, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", optimizer=dict(weight_decay=1e-4))
