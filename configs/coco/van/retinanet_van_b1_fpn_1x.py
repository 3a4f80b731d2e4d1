# VAN-B1, RetinaNet, 12 epochs of COCO: 42.3 box AP as published (arXiv 2202.09741), 23.6 M parameters.
# What is not verified: see retinanet_van_b0_fpn_1x.
#   vertebra train coco/van/retinanet_van_b1_fpn_1x
_base_ = ["retinanet_van_b0_fpn_1x.py"]
model = dict(backbone=dict(model_name="van_b1"), neck=dict(in_channels=[128, 320, 512]))
