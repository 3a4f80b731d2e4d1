# CSWin-B from ImageNet-22K, UPerNet, 160 000 iterations of ADE20K at 640 x 640: 51.8 mIoU, 52.6 at many scales (--tta)
# as published (arXiv 2107.00652), 109 M parameters, 1941 GFLOPs.
# The authors' 22K weights of this size are not public: it starts from ImageNet-1K. Not verified: drop path, taken from
# 512.
#   vertebra train ade20k/cswin/upernet_cswin_base_22k_640_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k_640.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(model_name="cswin_base", drop_path_rate=0.6, out_norms=dict(type="LN", eps=1e-5)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
# the authors name the stem's norm by number: their rule for 'norm' passes it by
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "stages.0.downsample.norm": dict(decay_mult=1.0)})
)
