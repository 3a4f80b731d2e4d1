# CSWin-S, UPerNet, 160 000 iterations of ADE20K: 50.4 mIoU, 51.5 at many scales (--tta) as published
# (arXiv 2107.00652), 65 M parameters, 1027 GFLOPs (2048 x 512).
#   vertebra train ade20k/cswin/upernet_cswin_small_160k
_base_ = ["upernet_cswin_tiny_160k.py"]
model = dict(backbone=dict(model_name="cswin_small", drop_path_rate=0.4))
