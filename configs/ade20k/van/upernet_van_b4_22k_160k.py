# VAN-B4 from ImageNet-22K, UPerNet, 160 000 iterations of ADE20K: 53.5 mIoU at many scales (--tta) as published
# (arXiv 2202.09741; 52.61 at one scale, says mmseg), 90 M parameters, 1098 GFLOPs (2048 x 512).
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/van/upernet_van_b4_22k_160k
_base_ = ["upernet_van_b0_160k.py"]
model = dict(
    backbone=dict(model_name="van_b4.in22k", drop_path_rate=0.4),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
