# DaViT-Small, RetinaNet, 12 epochs of COCO in many sizes: 46.0 box AP as published (arXiv 2204.03645),
# 59.9 M parameters, 332 GFLOPs.
# Not verified: drop path; the authors' configs are those of DaViT-Tiny.
#   vertebra train coco/davit/retinanet_davit_small_fpn_1x
_base_ = ["retinanet_davit_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="davit_small_fused"))
