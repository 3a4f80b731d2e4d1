# VAN-B1, Mask R-CNN, 12 epochs of COCO: 42.6 box AP, 38.9 mask AP as published (arXiv 2202.09741), 33.5 M parameters.
# What is not verified: see mask-rcnn_van_b0_fpn_1x.
#   vertebra train coco/van/mask-rcnn_van_b1_fpn_1x
_base_ = ["mask-rcnn_van_b0_fpn_1x.py"]
model = dict(backbone=dict(model_name="van_b1"), neck=dict(in_channels=[64, 128, 320, 512]))
