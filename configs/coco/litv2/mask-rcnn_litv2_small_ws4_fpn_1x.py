# LITv2-S with HiLo windows of 4, Mask R-CNN, 12 epochs of COCO: 44.7 box AP, 40.7 mask AP as published
# (arXiv 2205.13213), 47 M parameters, 249 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/mask-rcnn_litv2_small_ws4_fpn_1x
_base_ = ["mask-rcnn_litv2_small_fpn_1x.py"]
model = dict(backbone=dict(hilo_window=4))
