# TransNeXt-Small, UPerNet, 160 000 iterations of ADE20K: 52.2 mIoU as published (arXiv 2311.17132), 80 M parameters.
# 52.5 at many scales: --tta with model.test_cfg.mode=whole and model.backbone.bias_size=800, or 52.8 with
# model.backbone.position_bias=extrapolation.
#   vertebra train ade20k/transnext/upernet_transnext_small_160k
_base_ = ["upernet_transnext_tiny_160k.py"]
model = dict(backbone=dict(model_name="transnext_small", drop_path_rate=0.6))
