# VAN-B2, Semantic FPN, 40 000 iterations of ADE20K: 46.7 mIoU as published (arXiv 2202.09741), 30 M parameters,
# 48 GFLOPs (512 x 512).
#   vertebra train ade20k/van/semantic-fpn_van_b2_40k
_base_ = ["semantic-fpn_van_b0_40k.py"]
model = dict(backbone=dict(model_name="van_b2"), neck=dict(in_channels=[64, 128, 320, 512]))
