# DINO on four maps of a backbone, at strides 4 to 32, and one coarser still; else as in dino-4scale.py.
_base_ = "dino-4scale.py"
model = dict(
    num_feature_levels=5,
    backbone=dict(out_indices=(-4, -3, -2, -1)),
    neck=dict(in_channels=[256, 512, 1024, 2048], num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
