# VAN-B2, RetinaNet, 12 epochs of COCO: 44.9 box AP as published (arXiv 2202.09741), 36.3 M parameters.
# What is not verified: see retinanet_van_b0_fpn_1x.
#   vertebra train coco/van/retinanet_van_b2_fpn_1x
_base_ = ["retinanet_van_b0_fpn_1x.py"]
model = dict(backbone=dict(model_name="van_b2"), neck=dict(in_channels=[128, 320, 512]))
