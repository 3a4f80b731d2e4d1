# CSWin-B, Cascade Mask R-CNN, 36 epochs of COCO in many sizes: 53.9 box AP, 46.4 mask AP as published
# (arXiv 2107.00652), 135 M parameters, 1004 GFLOPs.
# What is not verified: see cascade-mask-rcnn_cswin_tiny_fpn_3x.
#   vertebra train coco/cswin/cascade-mask-rcnn_cswin_base_fpn_3x
_base_ = ["cascade-mask-rcnn_cswin_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="cswin_base", drop_path_rate=0.5), neck=dict(in_channels=[96, 192, 384, 768]))
