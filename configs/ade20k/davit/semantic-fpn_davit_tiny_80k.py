# DaViT-Tiny, Semantic FPN, 80 000 iterations of ADE20K: no score published; the usual recipe of this head, with drop
# path and BatchNorm of the authors' UPerNet (arXiv 2204.03645), 32.0 M parameters as built here.
#   vertebra train ade20k/davit/semantic-fpn_davit_tiny_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="davit_tiny_fused", drop_path_rate=0.3, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
    decode_head=dict(norm_cfg=dict(type="BN")),
)
