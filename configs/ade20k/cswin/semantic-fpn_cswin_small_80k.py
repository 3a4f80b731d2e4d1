# CSWin-S, Semantic FPN, 80 000 iterations of ADE20K: 49.2 mIoU as published (arXiv 2107.00652), 39 M parameters,
# 271 GFLOPs (2048 x 512).
# What is not verified: see semantic-fpn_cswin_tiny_80k.
#   vertebra train ade20k/cswin/semantic-fpn_cswin_small_80k
_base_ = ["semantic-fpn_cswin_tiny_80k.py"]
model = dict(backbone=dict(model_name="cswin_small", drop_path_rate=0.4))
