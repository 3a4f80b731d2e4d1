# VAN-B3, Mask R-CNN, 12 epochs of COCO: 48.3 box AP, 43.4 mask AP as published (arXiv 2202.09741), 64.4 M parameters.
# What is not verified: see mask-rcnn_van_b0_fpn_1x.
#   vertebra train coco/van/mask-rcnn_van_b3_fpn_1x
_base_ = ["mask-rcnn_van_b0_fpn_1x.py"]
model = dict(backbone=dict(model_name="van_b3"), neck=dict(in_channels=[64, 128, 320, 512]))
