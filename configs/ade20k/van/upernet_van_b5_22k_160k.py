# VAN-B5 from ImageNet-22K, UPerNet, 160 000 iterations of ADE20K: 53.9 mIoU at many scales (--tta) as published
# (arXiv 2202.09741; 53.11 at one scale, says mmseg), 117 M parameters (121.9 M as built here), 1208 GFLOPs (2048 x
# 512).
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/van/upernet_van_b5_22k_160k
_base_ = ["upernet_van_b0_160k.py"]
model = dict(
    backbone=dict(model_name="van_b5.in22k", drop_path_rate=0.4),
    decode_head=dict(in_channels=[96, 192, 480, 768]),
    auxiliary_head=dict(in_channels=480),
)
