# LITv2-M with HiLo windows of 4, Mask R-CNN, 12 epochs of COCO: 46.5 box AP, 42.0 mask AP as published
# (arXiv 2205.13213), 68 M parameters, 315 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/mask-rcnn_litv2_medium_ws4_fpn_1x
_base_ = ["mask-rcnn_litv2_medium_fpn_1x.py"]
model = dict(backbone=dict(hilo_window=4))
