# TransNeXt-Tiny, UPerNet, 160 000 iterations of ADE20K: 51.1 mIoU as published (arXiv 2311.17132), 59 M parameters.
# 51.5 at many scales: --tta with model.test_cfg.mode=whole and model.backbone.bias_size=800, or 51.7 with
# model.backbone.position_bias=extrapolation.
#   vertebra train ade20k/transnext/upernet_transnext_tiny_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="transnext_tiny", drop_path_rate=0.4, position_bias="interpolation", bias_size=512),
    decode_head=dict(in_channels=[72, 144, 288, 576]),
    auxiliary_head=dict(in_channels=288),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
exempt = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature", "norm")
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}),
)
del exempt
