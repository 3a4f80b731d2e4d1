# TransNeXt-Base, UPerNet, 160 000 iterations of ADE20K: 53.0 mIoU as published (arXiv 2311.17132), 121 M parameters.
# 53.5 at many scales: --tta with model.test_cfg.mode=whole and model.backbone.bias_size=800, or 53.7 with
# model.backbone.position_bias=extrapolation.
#   vertebra train ade20k/transnext/upernet_transnext_base_160k
_base_ = ["upernet_transnext_tiny_160k.py"]
model = dict(
    backbone=dict(model_name="transnext_base", drop_path_rate=0.7),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
