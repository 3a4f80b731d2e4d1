# 300 epochs of AdamW at 1e-3 for a total batch of 1024, 5 epochs of warm-up, then a cosine: what most papers use.
train_cfg = dict(type="ResumableEpochLoop", max_epochs=300, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmParamGroups",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min_ratio=1e-3, convert_to_iter_based=True),
]
