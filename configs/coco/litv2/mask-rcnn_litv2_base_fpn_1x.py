# LITv2-B, Mask R-CNN, 12 epochs of COCO: 47.3 box AP, 42.6 mask AP as published (arXiv 2205.13213), 106 M parameters,
# 500 GFLOPs (1280 x 800).
#   vertebra train coco/litv2/mask-rcnn_litv2_base_fpn_1x
_base_ = ["mask-rcnn_litv2_small_fpn_1x.py"]
model = dict(backbone=dict(model_name="litv2_base", drop_path_rate=0.3), neck=dict(in_channels=[128, 256, 512, 1024]))
