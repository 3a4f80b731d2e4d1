# BiFormer-B, Mask R-CNN, 12 epochs of COCO: 48.6 box AP, 43.7 mask AP as published (arXiv 2303.08810), 76.3 M
# parameters as built here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train coco/biformer/mask-rcnn_biformer_base_fpn_1x
_base_ = ["mask-rcnn_biformer_small_fpn_1x.py"]
model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.3), neck=dict(in_channels=[96, 192, 384, 768]))
