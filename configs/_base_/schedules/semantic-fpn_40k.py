# 40 000 iterations of ADE20K at twice the rate for a total batch of 32 (`train_dataloader.batch_size=4` on 8 GPUs).
_base_ = "semantic-fpn_80k.py"
train_cfg = dict(max_iters=40_000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=32)
