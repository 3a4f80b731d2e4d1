# TransNeXt-Tiny, Mask R-CNN, 12 epochs of COCO: 49.9 box AP, 44.6 mask AP as published (arXiv 2311.17132),
# 47.9 M parameters.
#   vertebra train coco/transnext/mask-rcnn_transnext_tiny_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="transnext_tiny", drop_path_rate=0.4, position_bias="interpolation", bias_size=800),
    neck=dict(in_channels=[72, 144, 288, 576]),
)
exempt = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature", "norm")
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}))
del exempt
