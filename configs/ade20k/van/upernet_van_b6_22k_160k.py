# VAN-B6 from ImageNet-22K, UPerNet, 160 000 iterations of ADE20K: 54.7 mIoU at many scales (--tta) as published
# (arXiv 2202.09741), 231 M parameters, 1658 GFLOPs (2048 x 512).
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/van/upernet_van_b6_22k_160k
_base_ = ["upernet_van_b0_160k.py"]
model = dict(
    backbone=dict(model_name="van_b6.in22k", drop_path_rate=0.5),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
