# Some epochs of the scenes with AdamW at 1e-3, a short warm-up and a cosine; averaged weights are evaluated.
train_cfg = dict(type="ResumableEpochLoop", max_epochs=12, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, convert_to_iter_based=True),
]
