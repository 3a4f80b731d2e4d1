# ATSS on any timm backbone, 12 epochs of COCO: --backbone NAME; ResNet-50 without it (32.3 M parameters). No score
# published; the usual recipe with AdamW, BatchNorm of the backbone at rest.
#   vertebra train coco/atss_fpn_1x
_base_ = [
    "../_base_/models/atss.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/runtime/detection.py",
]
model = dict(backbone=dict(norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
