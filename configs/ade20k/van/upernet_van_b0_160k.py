# VAN-B0, UPerNet, 160 000 iterations of ADE20K: 41.1 mIoU at many scales (--tta) as published (arXiv 2202.09741),
# 32 M parameters.
# Tested at multiples of 32, SyncBN in the backbone: as VAN-Segmentation, the authors' code, has it for both heads.
#   vertebra train ade20k/van/upernet_van_b0_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k_aligned.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="van_b0", drop_path_rate=0.1, norm_eps=1e-5),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}))
sync_bn = "torch"  # in the backbone as in the heads
