# CSWin-S, Cascade Mask R-CNN, 36 epochs of COCO in many sizes: 53.7 box AP, 46.4 mask AP as published
# (arXiv 2107.00652), 92 M parameters, 820 GFLOPs.
# What is not verified: see cascade-mask-rcnn_cswin_tiny_fpn_3x.
#   vertebra train coco/cswin/cascade-mask-rcnn_cswin_small_fpn_3x
_base_ = ["cascade-mask-rcnn_cswin_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="cswin_small", drop_path_rate=0.4))
