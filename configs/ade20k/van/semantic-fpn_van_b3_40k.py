# VAN-B3, Semantic FPN, 40 000 iterations of ADE20K: 48.1 mIoU as published (arXiv 2202.09741), 49 M parameters,
# 68 GFLOPs (512 x 512).
#   vertebra train ade20k/van/semantic-fpn_van_b3_40k
_base_ = ["semantic-fpn_van_b0_40k.py"]
model = dict(backbone=dict(model_name="van_b3", drop_path_rate=0.3), neck=dict(in_channels=[64, 128, 320, 512]))
