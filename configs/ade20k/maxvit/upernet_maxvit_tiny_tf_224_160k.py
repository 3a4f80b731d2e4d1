# MaxViT-T, UPerNet, 160 000 iterations of ADE20K: no score published; Swin's recipe for this head, drop path as on
# ImageNet (arXiv 2204.01697), 60.4 M parameters as built here.
#   vertebra train ade20k/maxvit/upernet_maxvit_tiny_tf_224_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="maxvit_tiny_tf_224_fused", drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
exempt = ("norm", "relative_position_bias_table")
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}))
del exempt
