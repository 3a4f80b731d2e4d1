# CSWin-L from ImageNet-22K, UPerNet, 160 000 iterations of ADE20K at 640 x 640: 53.4 mIoU, 55.7 at many scales (--tta)
# as published (arXiv 2107.00652), 208 M parameters, 2745 GFLOPs.
# Not verified: drop path, as for CSWin-B.
#   vertebra train ade20k/cswin/upernet_cswin_large_22k_640_160k
_base_ = ["upernet_cswin_base_22k_640_160k.py"]
model = dict(
    backbone=dict(model_name="cswin_large.in22k"),
    decode_head=dict(in_channels=[144, 288, 576, 1152]),
    auxiliary_head=dict(in_channels=576),
)
