# Mask2Former on any timm backbone, 160 000 iterations of ADE20K: --backbone NAME; ResNet-50 without it
# (44.0 M parameters). No score published; the usual recipe with AdamW.
#   vertebra train ade20k/mask2former_160k
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/ade20k_mask2former.py",
    "../_base_/schedules/mask2former_160k.py",
    "../_base_/runtime/segmentation.py",
]
sync_bn = "torch"  # in the backbone as in the heads
