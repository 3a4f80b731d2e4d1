# CSWin-B, Mask R-CNN, 12 epochs of COCO: 48.7 box AP in the paper's table (arXiv 2107.00652; not verified), 96.9 M
# parameters as built here.
# What is not verified: see mask-rcnn_cswin_tiny_fpn_1x.
#   vertebra train coco/cswin/mask-rcnn_cswin_base_fpn_1x
_base_ = ["mask-rcnn_cswin_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="cswin_base", drop_path_rate=0.5), neck=dict(in_channels=[96, 192, 384, 768]))
