# VAN-B0 from scratch on the digits at 64 x 64: 97 % top-1 or more within minutes on two CPU cores.
#   vertebra make_dataset digits data/digits && vertebra train demo/van_b0_digits
_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/digits.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime/default.py",
]
model = dict(num_classes=10, channels_last=True, label_smoothing=0.05)
train_cfg = dict(max_epochs=18, val_interval=3)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, eta_min_ratio=1e-2, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=3, save_best="top1"))
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.02, update_buffers=True)]
