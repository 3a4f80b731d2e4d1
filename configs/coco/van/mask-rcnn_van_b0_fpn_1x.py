# VAN-B0, Mask R-CNN, 12 epochs of COCO: 40.2 box AP, 37.6 mask AP as published (arXiv 2202.09741), 23.9 M parameters.
# Not verified, since the authors' detection code was not read: warm-up 500 as Swin's (a project derived from VAN's has
# 1000), drop path 0.1 as in that project, no decay of norms as Swin's.
#   vertebra train coco/van/mask-rcnn_van_b0_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="van_b0", drop_path_rate=0.1, norm_eps=1e-5),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}))
