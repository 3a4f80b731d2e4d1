# LITv2-B with HiLo windows of 4, RetinaNet, 12 epochs of COCO: 46.3 box AP as published (arXiv 2205.13213),
# 97 M parameters, 430 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/retinanet_litv2_base_ws4_fpn_1x
_base_ = ["retinanet_litv2_base_fpn_1x.py"]
model = dict(backbone=dict(hilo_window=4))
