# VAN-B2, UPerNet, 160 000 iterations of ADE20K: 50.1 mIoU at many scales (--tta) as published (arXiv 2202.09741; 49.35
# at one scale, says mmseg), 57 M parameters, 948 GFLOPs (2048 x 512).
#   vertebra train ade20k/van/upernet_van_b2_160k
_base_ = ["upernet_van_b0_160k.py"]
model = dict(
    backbone=dict(model_name="van_b2"),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
