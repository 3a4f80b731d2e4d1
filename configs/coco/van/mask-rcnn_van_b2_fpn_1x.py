# VAN-B2, Mask R-CNN, 12 epochs of COCO: 46.4 box AP, 41.8 mask AP as published (arXiv 2202.09741), 46.2 M parameters.
# What is not verified: see mask-rcnn_van_b0_fpn_1x.
#   vertebra train coco/van/mask-rcnn_van_b2_fpn_1x
_base_ = ["mask-rcnn_van_b0_fpn_1x.py"]
model = dict(backbone=dict(model_name="van_b2"), neck=dict(in_channels=[64, 128, 320, 512]))
