# SHViT-S4, Mask R-CNN, 12 epochs of COCO: 39.0 box AP, 35.9 mask AP in downstream/README.md of the authors' code
# (paper: arXiv 2401.16456), 37.4 M parameters as built here.
#   vertebra train coco/shvit/mask-rcnn_shvit_s4_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
# maps at strides 16, 32 and 64: the neck grows those at strides 8 and 4
model = dict(
    backbone=dict(model_name="shvit_s4_fused", norm_eval=True, out_indices=(0, 1, 2)),
    neck=dict(
        _delete_=True, type="PyramidNeck", in_channels=[224, 336, 448], out_channels=256, num_outs=5, extra_levels=2
    ),
)
