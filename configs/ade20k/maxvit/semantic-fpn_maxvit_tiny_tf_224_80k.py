# MaxViT-T, Semantic FPN, 80 000 iterations of ADE20K: no score published; the usual recipe of this head, drop path as
# on ImageNet (arXiv 2204.01697), 34.4 M parameters as built here.
#   vertebra train ade20k/maxvit/semantic-fpn_maxvit_tiny_tf_224_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="maxvit_tiny_tf_224_fused", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
