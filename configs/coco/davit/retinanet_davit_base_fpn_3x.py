# DaViT-Base, RetinaNet, 36 epochs of COCO in many sizes: 48.7 box AP as published (arXiv 2204.03645),
# 98.5 M parameters, 471 GFLOPs.
# Not verified: drop path; the authors' configs are those of DaViT-Tiny.
#   vertebra train coco/davit/retinanet_davit_base_fpn_3x
_base_ = ["retinanet_davit_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="davit_base_fused"), neck=dict(in_channels=[256, 512, 1024]))
