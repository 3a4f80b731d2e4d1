# LITv2-M, RetinaNet, 12 epochs of COCO: 46.0 box AP as published (arXiv 2205.13213), 59 M parameters, 348 GFLOPs (1280
# x 800).
#   vertebra train coco/litv2/retinanet_litv2_medium_fpn_1x
_base_ = ["retinanet_litv2_small_fpn_1x.py"]
model = dict(backbone=dict(model_name="litv2_medium"))
