# BiFormer-S, UPerNet, 160 000 iterations of ADE20K: 49.8 mIoU, 50.8 at many scales (--tta) as published (arXiv
# 2303.08810), 55.3 M parameters as built here.
# The authors warn that 16 bits may end in NaN here: optim_wrapper.dtype=bfloat16 is the way out.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/biformer/upernet_biformer_small_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="biformer_small", n_win=8, drop_path_rate=0.3, out_norms=dict(type="LN", eps=1e-6)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
# the authors name the norms between stages by number: their rule for 'norm' passes them by
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale=512.0,
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "downsample": dict(decay_mult=1.0)}),
)
sync_bn = "torch"  # in the backbone as in the heads
