# BiFormer-S, Semantic FPN, 80 000 iterations of ADE20K: 48.9 mIoU as published (arXiv 2303.08810), 29.3 M parameters as
# built here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/biformer/semantic-fpn_biformer_small_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k_aligned.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="biformer_small", n_win=8, drop_path_rate=0.15, out_norms=dict(type="LN", eps=1e-6)),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", loss_scale=512.0, optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=1000),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-8, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=32)
sync_bn = "torch"  # in the backbone as in the head
