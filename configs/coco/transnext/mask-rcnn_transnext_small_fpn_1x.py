# TransNeXt-Small, Mask R-CNN, 12 epochs of COCO: 51.1 box AP, 45.5 mask AP as published (arXiv 2311.17132),
# 69.3 M parameters.
#   vertebra train coco/transnext/mask-rcnn_transnext_small_fpn_1x
_base_ = ["mask-rcnn_transnext_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="transnext_small", drop_path_rate=0.6))
