# VAN-B2, ATSS, 36 epochs of COCO in many sizes: 50.2 box AP as published (arXiv 2202.09741), 34 M parameters,
# 221 GFLOPs (1280 x 800).
# Not verified, since the authors' detection code was not read: warm-up 500 as Swin's (a project derived from VAN's has
# 1000), drop path 0.1 as in that project, no decay of norms as Swin's.
#   vertebra train coco/van/atss_van_b2_fpn_3x
_base_ = [
    "../../_base_/models/atss.py",
    "../../_base_/datasets/coco_multiscale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="van_b2", drop_path_rate=0.1, norm_eps=1e-5),
    neck=dict(in_channels=[128, 320, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}))
