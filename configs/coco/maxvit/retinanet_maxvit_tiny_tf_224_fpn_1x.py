# MaxViT-T, RetinaNet, 12 epochs of COCO: no score published; Swin's recipe for this head, drop path as on ImageNet
# (arXiv 2204.01697), 40.4 M parameters as built here.
#   vertebra train coco/maxvit/retinanet_maxvit_tiny_tf_224_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="maxvit_tiny_tf_224_fused", drop_path_rate=0.2),
    neck=dict(in_channels=[128, 256, 512]),
)
exempt = ("norm", "relative_position_bias_table")
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}))
del exempt
