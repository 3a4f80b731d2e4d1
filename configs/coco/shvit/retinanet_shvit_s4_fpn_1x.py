# SHViT-S4, RetinaNet, 12 epochs of COCO: 38.8 box AP in downstream/README.md of the authors' code (paper: arXiv
# 2401.16456), 25.5 M parameters as built here.
#   vertebra train coco/shvit/retinanet_shvit_s4_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
# maps at strides 16, 32 and 64: the neck grows the one at stride 8
model = dict(
    backbone=dict(model_name="shvit_s4_fused", norm_eval=True),
    neck=dict(
        _delete_=True, type="PyramidNeck", in_channels=[224, 336, 448], out_channels=256, num_outs=5, extra_levels=1
    ),
)
