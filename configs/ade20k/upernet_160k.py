# UPerNet on any timm backbone, 160 000 iterations of ADE20K: --backbone NAME; ResNet-50 without it
# (66.5 M parameters). No score published; the usual recipe with AdamW.
#   vertebra train ade20k/upernet_160k
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/upernet_160k.py",
    "../_base_/runtime/segmentation.py",
]
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
sync_bn = "torch"  # in the backbone as in the heads
