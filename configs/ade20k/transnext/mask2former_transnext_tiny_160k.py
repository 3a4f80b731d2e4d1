# TransNeXt-Tiny, Mask2Former, 160 000 iterations of ADE20K: 53.4 mIoU as published (arXiv 2311.17132),
# 47.5 M parameters.
#   vertebra train ade20k/transnext/mask2former_transnext_tiny_160k
_base_ = [
    "../../_base_/models/mask2former.py",
    "../../_base_/datasets/ade20k_mask2former.py",
    "../../_base_/schedules/mask2former_160k_transnext.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="transnext_tiny", drop_path_rate=0.3, position_bias="interpolation", bias_size=512),
    decode_head=dict(in_channels=[72, 144, 288, 576]),
)
