# CSWin-S, Mask R-CNN, 36 epochs of COCO in many sizes: 50.0 box AP, 44.5 mask AP as published (arXiv 2107.00652),
# 54 M parameters, 342 GFLOPs.
# What is not verified: see mask-rcnn_cswin_tiny_fpn_3x.
#   vertebra train coco/cswin/mask-rcnn_cswin_small_fpn_3x
_base_ = ["mask-rcnn_cswin_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="cswin_small", drop_path_rate=0.4))
