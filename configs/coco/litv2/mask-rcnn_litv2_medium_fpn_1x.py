# LITv2-M, Mask R-CNN, 12 epochs of COCO: 46.8 box AP, 42.3 mask AP as published (arXiv 2205.13213), 68 M parameters,
# 367 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/mask-rcnn_litv2_medium_fpn_1x
_base_ = ["mask-rcnn_litv2_small_fpn_1x.py"]
model = dict(backbone=dict(model_name="litv2_medium"))
