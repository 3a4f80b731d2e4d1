# DaViT-Base, Mask R-CNN, 36 epochs of COCO in many sizes: 49.9 box AP, 44.6 mask AP as published (arXiv 2204.03645),
# 107.3 M parameters, 491 GFLOPs.
# Not verified: drop path; the authors' configs are those of DaViT-Tiny.
#   vertebra train coco/davit/mask-rcnn_davit_base_fpn_3x
_base_ = ["mask-rcnn_davit_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="davit_base_fused"), neck=dict(in_channels=[128, 256, 512, 1024]))
