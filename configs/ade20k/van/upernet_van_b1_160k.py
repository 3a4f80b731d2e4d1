# VAN-B1, UPerNet, 160 000 iterations of ADE20K: 44.9 mIoU at many scales (--tta) as published (arXiv 2202.09741),
# 44 M parameters.
#   vertebra train ade20k/van/upernet_van_b1_160k
_base_ = ["upernet_van_b0_160k.py"]
model = dict(
    backbone=dict(model_name="van_b1"),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
