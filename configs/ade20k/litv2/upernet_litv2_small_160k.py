# LITv2-S, UPerNet, 160 000 iterations of ADE20K: no score published; Swin's recipe for this head, with drop path and
# norms of the authors' Semantic FPN (arXiv 2205.13213), 59.5 M parameters as built here.
#   vertebra train ade20k/litv2/upernet_litv2_small_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="litv2_small", drop_path_rate=0.2, out_norms=dict(type="LN", eps=1e-5)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}))
