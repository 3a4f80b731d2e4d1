# CSWin-S, Mask R-CNN, 12 epochs of COCO: 47.9 box AP in the paper's table (arXiv 2107.00652; not verified), 54.3 M
# parameters as built here.
# What is not verified: see mask-rcnn_cswin_tiny_fpn_1x.
#   vertebra train coco/cswin/mask-rcnn_cswin_small_fpn_1x
_base_ = ["mask-rcnn_cswin_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="cswin_small", drop_path_rate=0.4))
