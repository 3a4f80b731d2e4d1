# CSWin-B, Semantic FPN, 80 000 iterations of ADE20K: 49.9 mIoU as published (arXiv 2107.00652), 81 M parameters,
# 464 GFLOPs (2048 x 512).
# What is not verified: see semantic-fpn_cswin_tiny_80k.
#   vertebra train ade20k/cswin/semantic-fpn_cswin_base_80k
_base_ = ["semantic-fpn_cswin_tiny_80k.py"]
model = dict(backbone=dict(model_name="cswin_base", drop_path_rate=0.6), neck=dict(in_channels=[96, 192, 384, 768]))
