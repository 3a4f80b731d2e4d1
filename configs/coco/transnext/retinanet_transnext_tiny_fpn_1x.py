# TransNeXt-Tiny, RetinaNet, 12 epochs of COCO: no score published; recipe of the authors' Mask R-CNN (arXiv
# 2311.17132), 38.1 M parameters as built here.
#   vertebra train coco/transnext/retinanet_transnext_tiny_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="transnext_tiny", drop_path_rate=0.4, position_bias="interpolation", bias_size=800),
    neck=dict(in_channels=[144, 288, 576]),
)
exempt = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature", "norm")
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}))
del exempt
