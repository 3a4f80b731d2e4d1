# DaViT-Tiny, UPerNet, 160 000 iterations of ADE20K: 46.3 mIoU as published (arXiv 2204.03645), 60 M parameters,
# 940 GFLOPs.
#   vertebra train ade20k/davit/upernet_davit_tiny_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="davit_tiny_fused", drop_path_rate=0.3, out_norms=dict(type="LN", eps=1e-5)),
    decode_head=dict(in_channels=[96, 192, 384, 768], norm_cfg=dict(type="BN")),
    auxiliary_head=dict(in_channels=384, norm_cfg=dict(type="BN")),
)
