# DaViT-Base, Mask R-CNN, 12 epochs of COCO in many sizes: 48.2 box AP, 43.3 mask AP as published (arXiv 2204.03645),
# 107.3 M parameters, 491 GFLOPs.
# Not verified: drop path; the authors' configs are those of DaViT-Tiny.
#   vertebra train coco/davit/mask-rcnn_davit_base_fpn_1x
_base_ = ["mask-rcnn_davit_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="davit_base_fused"), neck=dict(in_channels=[128, 256, 512, 1024]))
