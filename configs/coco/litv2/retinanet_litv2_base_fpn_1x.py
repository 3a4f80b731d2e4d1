# LITv2-B, RetinaNet, 12 epochs of COCO: 46.7 box AP as published (arXiv 2205.13213), 97 M parameters, 481 GFLOPs (1280
# x 800).
#   vertebra train coco/litv2/retinanet_litv2_base_fpn_1x
_base_ = ["retinanet_litv2_small_fpn_1x.py"]
model = dict(backbone=dict(model_name="litv2_base", drop_path_rate=0.3), neck=dict(in_channels=[256, 512, 1024]))
