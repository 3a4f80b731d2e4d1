# Some epochs of the scenes with AdamW at 1e-3, a short warm-up and a cosine; averaged weights are evaluated. The
# backbone is first trained for some epochs as a classifier of single digits.
pretraining = dict(config="demo/van_b0_digits", options=["train_cfg.max_epochs=7", "train_cfg.val_interval=7"])
train_cfg = dict(type="ResumableEpochLoop", max_epochs=5, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, convert_to_iter_based=True),
]
