# VAN-B0, Semantic FPN, 40 000 iterations of ADE20K: 38.5 mIoU as published (arXiv 2202.09741), 8 M parameters,
# 26 GFLOPs (512 x 512).
#   vertebra train ade20k/van/semantic-fpn_van_b0_40k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k_aligned.py",
    "../../_base_/schedules/semantic-fpn_40k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="van_b0", drop_path_rate=0.2, norm_eps=1e-5),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
train_dataloader = dict(batch_size=4)
sync_bn = "torch"  # in the backbone as in the head
