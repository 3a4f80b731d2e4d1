# 12 epochs of COCO with AdamW at 1e-4 for a total batch of 16, a tenth of it from epochs 8 and 11 on.
train_cfg = dict(type="ResumableEpochLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=500),
    dict(type="MultiStepLR", milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
