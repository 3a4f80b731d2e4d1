# DaViT-Small, Mask R-CNN, 36 epochs of COCO in many sizes: 49.5 box AP, 44.3 mask AP as published (arXiv 2204.03645),
# 69.2 M parameters, 351 GFLOPs.
# Not verified: drop path; the authors' configs are those of DaViT-Tiny.
#   vertebra train coco/davit/mask-rcnn_davit_small_fpn_3x
_base_ = ["mask-rcnn_davit_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="davit_small_fused"))
