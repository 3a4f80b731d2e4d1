# SHViT-S4, Semantic FPN, 80 000 iterations of ADE20K: no score published (arXiv 2401.16456); the usual recipe of this
# head, norms at rest as in the authors' detectors, 22.3 M parameters as built here.
#   vertebra train ade20k/shvit/semantic-fpn_shvit_s4_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
# maps at strides 16, 32 and 64: the neck grows those at strides 8 and 4
model = dict(
    backbone=dict(model_name="shvit_s4_fused", norm_eval=True, out_indices=(0, 1, 2)),
    neck=dict(
        _delete_=True, type="PyramidNeck", in_channels=[224, 336, 448], out_channels=256, num_outs=5, extra_levels=2
    ),
    decode_head=dict(in_channels=[256] * 5, in_index=[0, 1, 2, 3, 4], feature_strides=[4, 8, 16, 32, 64]),
)
