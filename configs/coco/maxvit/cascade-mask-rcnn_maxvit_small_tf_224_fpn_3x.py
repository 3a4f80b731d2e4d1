# MaxViT-S, Cascade Mask R-CNN, COCO at 896 x 896: 53.1 box AP, 45.4 mask AP in the paper (arXiv 2204.01697; not
# verified), 107 M parameters (125.7 M as built here), 595 GFLOPs.
# What is not verified: see cascade-mask-rcnn_maxvit_tiny_tf_224_fpn_3x.
#   vertebra train coco/maxvit/cascade-mask-rcnn_maxvit_small_tf_224_fpn_3x
_base_ = ["cascade-mask-rcnn_maxvit_tiny_tf_224_fpn_3x.py"]
model = dict(
    backbone=dict(model_name="maxvit_small_tf_224_fused", drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
