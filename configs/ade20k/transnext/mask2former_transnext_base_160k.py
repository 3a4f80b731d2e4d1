# TransNeXt-Base, Mask2Former, 160 000 iterations of ADE20K: 54.7 mIoU as published (arXiv 2311.17132),
# 109 M parameters.
#   vertebra train ade20k/transnext/mask2former_transnext_base_160k
_base_ = ["mask2former_transnext_tiny_160k.py"]
model = dict(
    backbone=dict(model_name="transnext_base", drop_path_rate=0.6), decode_head=dict(in_channels=[96, 192, 384, 768])
)
