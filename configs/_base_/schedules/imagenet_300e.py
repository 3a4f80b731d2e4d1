# 300 epochs of AdamW at 1e-3 for a total batch of 1024: 5 epochs of warm-up from 1e-6, then a cosine to 1e-5. The rate
# follows the total batch linearly: twice the images a step, twice the rate.
train_cfg = dict(type="ResumableEpochLoop", max_epochs=300, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmParamGroups",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
)
auto_scale_lr = dict(enable=True, base_batch_size=1024)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=1e-5, convert_to_iter_based=True),
]
