# TransNeXt-Base, Mask R-CNN, 12 epochs of COCO: 51.7 box AP, 45.9 mask AP as published (arXiv 2311.17132),
# 109.2 M parameters.
#   vertebra train coco/transnext/mask-rcnn_transnext_base_fpn_1x
_base_ = ["mask-rcnn_transnext_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="transnext_base", drop_path_rate=0.7), neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", loss_scale=512.0)
