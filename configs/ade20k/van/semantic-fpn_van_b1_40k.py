# VAN-B1, Semantic FPN, 40 000 iterations of ADE20K: 42.9 mIoU as published (arXiv 2202.09741), 18 M parameters,
# 35 GFLOPs (512 x 512).
#   vertebra train ade20k/van/semantic-fpn_van_b1_40k
_base_ = ["semantic-fpn_van_b0_40k.py"]
model = dict(backbone=dict(model_name="van_b1"), neck=dict(in_channels=[64, 128, 320, 512]))
