# LITv2-M with HiLo windows of 4, RetinaNet, 12 epochs of COCO: 45.8 box AP as published (arXiv 2205.13213),
# 59 M parameters, 312 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/retinanet_litv2_medium_ws4_fpn_1x
_base_ = ["retinanet_litv2_medium_fpn_1x.py"]
model = dict(backbone=dict(hilo_window=4))
