# LITv2-S with HiLo windows of 4, RetinaNet, 12 epochs of COCO: 43.7 box AP as published (arXiv 2205.13213),
# 38 M parameters, 230 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/retinanet_litv2_small_ws4_fpn_1x
_base_ = ["retinanet_litv2_small_fpn_1x.py"]
model = dict(backbone=dict(hilo_window=4))
