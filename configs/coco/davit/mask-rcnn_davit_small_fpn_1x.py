# DaViT-Small, Mask R-CNN, 12 epochs of COCO in many sizes: 47.7 box AP, 42.9 mask AP as published (arXiv 2204.03645),
# 69.2 M parameters, 351 GFLOPs.
# Not verified: drop path; the authors' configs are those of DaViT-Tiny.
#   vertebra train coco/davit/mask-rcnn_davit_small_fpn_1x
_base_ = ["mask-rcnn_davit_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="davit_small_fused"))
