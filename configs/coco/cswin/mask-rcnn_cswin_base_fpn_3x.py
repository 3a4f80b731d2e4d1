# CSWin-B, Mask R-CNN, 36 epochs of COCO in many sizes: 50.8 box AP, 44.9 mask AP as published (arXiv 2107.00652),
# 97 M parameters, 526 GFLOPs.
# What is not verified: see mask-rcnn_cswin_tiny_fpn_3x.
#   vertebra train coco/cswin/mask-rcnn_cswin_base_fpn_3x
_base_ = ["mask-rcnn_cswin_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="cswin_base", drop_path_rate=0.5), neck=dict(in_channels=[96, 192, 384, 768]))
