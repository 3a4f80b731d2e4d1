# 80 000 iterations of ADE20K with AdamW at 1e-4 for a total batch of 16, falling as (1 - t) ** 0.9.
train_cfg = dict(type="ResumableIterLoop", max_iters=80_000, val_interval=8000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
