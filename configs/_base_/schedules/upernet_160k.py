# 160 000 iterations of ADE20K with AdamW at 6e-5 for a total batch of 16: a straight line to 0, and one up before it.
train_cfg = dict(type="ResumableIterLoop", max_iters=160_000, val_interval=16_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01))
# both from the start: mmcv 1 multiplied the warm-up with the line, which had begun to fall
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
