# CSWin-B, UPerNet, 160 000 iterations of ADE20K: 51.1 mIoU, 52.2 at many scales (--tta) as published
# (arXiv 2107.00652), 109 M parameters, 1222 GFLOPs (2048 x 512).
#   vertebra train ade20k/cswin/upernet_cswin_base_160k
_base_ = ["upernet_cswin_tiny_160k.py"]
model = dict(
    backbone=dict(model_name="cswin_base", drop_path_rate=0.6),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
