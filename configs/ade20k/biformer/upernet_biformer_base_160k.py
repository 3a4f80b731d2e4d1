# BiFormer-B, UPerNet, 160 000 iterations of ADE20K: 51.0 mIoU, 51.7 at many scales (--tta) as published (arXiv
# 2303.08810), 88.5 M parameters as built here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/biformer/upernet_biformer_base_160k
_base_ = ["upernet_biformer_small_160k.py"]
model = dict(
    backbone=dict(model_name="biformer_base", drop_path_rate=0.4),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
