# CSWin-T, UPerNet, 160 000 iterations of ADE20K: 49.3 mIoU, 50.7 at many scales (--tta) as published
# (arXiv 2107.00652), 60 M parameters (52.1 M as built here), 959 GFLOPs (2048 x 512).
#   vertebra train ade20k/cswin/upernet_cswin_tiny_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="cswin_tiny", drop_path_rate=0.3, out_norms=dict(type="LN", eps=1e-5)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
# the authors name the stem's norm by number: their rule for 'norm' passes it by
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "stages.0.downsample.norm": dict(decay_mult=1.0)})
)
