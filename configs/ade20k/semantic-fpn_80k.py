# Semantic FPN on any timm backbone, 80 000 iterations of ADE20K: --backbone NAME; ResNet-50 without it
# (28.5 M parameters). No score published; the usual recipe with AdamW.
#   vertebra train ade20k/semantic-fpn_80k
_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/semantic-fpn_80k.py",
    "../_base_/runtime/segmentation.py",
]
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
sync_bn = "torch"  # in the backbone as in the heads
